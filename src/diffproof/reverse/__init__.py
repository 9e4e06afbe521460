"""The reverse process from a noisy image to a clean one: noise levels, steps, samples."""

"""Defences whose diffusion model is the classifier."""

"""The pictures of `diffproof theory`."""

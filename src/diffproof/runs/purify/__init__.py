"""Runs of `diffproof purify`."""

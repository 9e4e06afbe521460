"""Randomized smoothing: bounds, certificates, certify and predict."""

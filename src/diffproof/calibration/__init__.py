"""Calibration of probabilities: its errors, temperatures, diagrams."""

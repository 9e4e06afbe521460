"""Objectives of classifiers that are to be smoothed: one file a loss."""

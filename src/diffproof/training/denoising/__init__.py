"""Objectives of denoisers: one file a loss, or two that differ in their labels."""

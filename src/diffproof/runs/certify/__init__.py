"""Certification runs: their folders, reports, verification and exports."""

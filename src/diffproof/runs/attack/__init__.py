"""Attack runs: their folders, reports and verification."""

"""The page of `diffproof serve`: that of a report, which renews itself."""

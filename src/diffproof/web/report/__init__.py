"""The report in the browser: one self-contained page of runs."""

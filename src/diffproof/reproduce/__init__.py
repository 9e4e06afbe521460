"""The tables and figures of four papers, as runs of diffproof."""

"""The command line: parses, calls the library, prints. Only click loads before a command runs."""

from diffproof.cli.main import main

__all__ = ["main"]

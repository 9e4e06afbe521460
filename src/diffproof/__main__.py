"""`python -m diffproof`, as launchers of several processes call it."""

from diffproof.cli import main

if __name__ == "__main__":
    main()

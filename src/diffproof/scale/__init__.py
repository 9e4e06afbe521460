"""Work on many devices: what is done where, and again where a worker is lost."""

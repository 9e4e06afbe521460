"""A page on which attacks, purification, votes and certificates are tried on one picture at a time."""

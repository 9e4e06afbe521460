"""Defences, one file each, and the voting they share."""

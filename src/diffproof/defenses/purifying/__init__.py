"""Defences that make another image first."""

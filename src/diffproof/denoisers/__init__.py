"""Diffusion models as one function: the protocol, schedules, adapters, closed forms."""

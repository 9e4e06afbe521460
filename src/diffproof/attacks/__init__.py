"""Threat models, attacks on a defence, and what they find."""

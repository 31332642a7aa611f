"""Steered generation and its evaluation: directions, edits, sweeps, what changed."""

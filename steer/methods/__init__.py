"""Steering methods: which direction of the residual stream is edited, and how."""

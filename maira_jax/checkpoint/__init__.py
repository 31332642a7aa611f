"""Checkpoints on disk: `layout` is the table of names, `convert` goes from the Hugging Face layout to Flax parameters
and back a tensor at a time, and `store` holds the converted parameters."""

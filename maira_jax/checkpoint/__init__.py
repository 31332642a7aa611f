"""Checkpoints: the table of names, conversion from and to the Hugging Face layout, and the orbax store."""

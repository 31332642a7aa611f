"""Training a small MAIRA-2 from scratch: the vision tower on what is in the picture, then all of it on reports."""

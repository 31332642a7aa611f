"""Training a small MAIRA-2 from scratch: first the vision tower on labels, then the whole model on reports."""

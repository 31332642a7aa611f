"""What a radiology report states: the labeller with its vocabulary, and what changed between two reports."""

"""Sparse autoencoders on stored activations: harvest, training, metrics and formats."""

"""Sparse autoencoders: the activations they are trained on, their variants, training, evaluation and file formats."""

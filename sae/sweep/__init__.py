"""Autoencoders of many widths, learning rates and sparsities, trained together on one stream of activations."""

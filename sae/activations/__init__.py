"""Activations: harvested from the model or imported from arrays, stored, shuffled into batches, or computed live."""

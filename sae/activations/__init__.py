"""Activations: harvested from the model or taken from arrays, stored, shuffled into batches, or computed live."""

"""Where features are active: contexts, the index of activations, and the exemplars chosen from it."""

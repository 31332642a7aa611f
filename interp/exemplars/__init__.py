"""Where features are active: contexts of the stored tokens, the index over them, and each feature's exemplars."""

"""Faithfulness: whether the text becomes about a feature's explanation where the feature is amplified."""

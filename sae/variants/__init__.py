"""Variants of the sparse autoencoder, one file each: which pre-activations are features, in training and at inference.

A new variant with the same four arrays is one file that registers a `Variant` in `VARIANTS`, here or in a module of
your own that the configuration file imports.
"""

from sae.variants import batch_top_k, relu, top_k
from sae.variants.variant import VARIANTS, Selection, Variant, trained_as

__all__ = ["VARIANTS", "Selection", "Variant", "batch_top_k", "relu", "top_k", "trained_as"]

"""ReLU with an L1 penalty (Bricken et al., 2023): every positive pre-activation, in training and at inference."""

import jax

from sae.kernels import kth_largest
from sae.variants.variant import VARIANTS, Selection, Variant


def select(z: jax.Array, k: int, column_order: jax.Array, search: kth_largest.Search) -> Selection:
    """Selects the positive entries of `z [B, F]`, however many there are."""
    del k, column_order, search
    return z > 0, kth_largest.smallest_kept(z, z > 0)


VARIANTS.register("relu")(Variant(title="ReLU", saelens="standard", select=select, at_most_k=False, threshold=0.0))

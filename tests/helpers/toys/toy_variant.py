"""A variant of the autoencoder: of each token, the features at least half as active as its strongest one."""

import jax

from sae.kernels import kth_largest
from sae.variants import VARIANTS, Selection, Variant


def select(z: jax.Array, k: int, column_order: jax.Array, search: kth_largest.Search) -> Selection:
    """Selects the entries of `z [B, F]` that are at least half of their row's largest."""
    del k, column_order, search
    mask = (z > 0) & (z >= z.max(-1, keepdims=True) / 2)  # [B, F]
    return mask, kth_largest.smallest_kept(z, mask)


VARIANTS.register("half_of_strongest")(
    Variant(title="HalfOfStrongest", saelens="standard", select=select, at_most_k=False)
)

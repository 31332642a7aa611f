"""TopK (Gao et al., 2024): in training, the k largest pre-activations of each token.

At inference a calibrated threshold keeps k features per token on average, so that a feature's activation does not
depend on the other features.
"""

import jax

from sae.kernels import kth_largest
from sae.variants.variant import VARIANTS, Selection, Variant


def select(z: jax.Array, k: int, column_order: jax.Array, search: kth_largest.Search) -> Selection:
    """Selects the `k` largest positive entries of each row of `z [B, F]`."""
    del search  # each row's threshold is searched in its own way
    return kth_largest.row_top_k(z, k, column_order)


VARIANTS.register("top_k")(Variant(title="TopK", saelens="topk", select=select))

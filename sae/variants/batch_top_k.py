"""BatchTopK (Bussmann et al., 2024): in training, the k * B largest pre-activations of a batch of B tokens.

At inference a threshold, the same for all tokens, keeps k features per token on average. With several groups this is
Matryoshka BatchTopK (Bussmann et al., 2025).
"""

import jax

from sae.kernels import kth_largest
from sae.variants.variant import VARIANTS, Selection, Variant


def select(z: jax.Array, k: int, column_order: jax.Array, search: kth_largest.Search) -> Selection:
    """Selects the `k * B` largest positive entries of `z [B, F]`."""
    return kth_largest.batch_top_k(z, k * z.shape[0], search, column_order)


VARIANTS.register("batch_top_k")(Variant(title="BatchTopK", saelens="matryoshka_batchtopk", select=select))

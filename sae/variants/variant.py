"""What distinguishes one kind of sparse autoencoder from another, and the registry of all kinds."""

import dataclasses
from collections.abc import Callable

import jax

from maira_jax.run.registry import Registry
from sae.autoencoder import Sae
from sae.kernels import kth_largest

Selection = tuple[jax.Array, jax.Array]
Select = Callable[[jax.Array, int, jax.Array, kth_largest.Search], Selection]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Variant:
    """A kind of sparse autoencoder over the four arrays of `sae.autoencoder`.

    Attributes:
      title: what papers call it, for model cards.
      saelens: the training architecture of SAELens that it corresponds to.
      select: selects the features of a batch in training, `select(z, k, column_order, search)`, from pre-activations
        after the ReLU `z`, float32 [B, F]. `column_order`, int32 [F], ranks the columns in a tie, and `search` says how
        a threshold is searched. It returns the mask, bool [B, F], and the smallest selected entry (0 if nothing is
        selected), float32 [].
      at_most_k: at most k features per token are selected on average, so the selected entries of a batch fit an array
        of a size that is known in advance.
      threshold: the inference threshold; None where it is calibrated on held-out tokens to k features per token.
      per_token: at inference only the k largest features of each token are kept.
    """

    title: str
    saelens: str
    select: Select
    at_most_k: bool = True
    threshold: float | None = None
    per_token: bool = False


VARIANTS: Registry[Variant] = Registry("sae.kind")


def trained_as(sae: Sae) -> Variant | None:
    """The variant that an autoencoder of this toolkit was trained as; None for one from elsewhere."""
    kind = sae.meta.get("sae", {}).get("kind")
    return VARIANTS.get(kind) if kind in VARIANTS.names() else None

"""How directions become an edit of the model: a batch of rows, each with its own."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from maira_jax.errors import UserError
from maira_jax.model.config import Maira2Config
from maira_jax.model.maira2 import Edits
from maira_jax.model.sites import Site
from steer.directions import Direction


def steering_site(name: str, cfg: Maira2Config) -> Site:
    """The site to edit.

    Raises:
      UserError: there is no such site, or it is not in the language model.
    """
    site = Site.parse(name, cfg)
    if site.tower != "language":
        raise UserError(f"steering edits the language model, but the activations are of {name}: harvest another site")
    return site


def edits(directions: Sequence[Direction], strengths: Sequence[float], site: Site) -> Edits:
    """The edit of a batch: row i moves along directions[i] by strengths[i] of its units.

    All fields are arrays of the batch's shape, so that one compiled program serves every batch.
    Only positions that produce a token are edited; the prompt is not.

    Args:
      directions: [batch].
      strengths: [batch], in units of each direction.
      site: where.
    """
    raw = [s * d.unit for s, d in zip(strengths, directions, strict=True)]
    return Edits(
        site=jnp.full(len(raw), site.code, jnp.int32),
        direction=jnp.asarray(np.stack([d.vector for d in directions])),
        strength=jnp.asarray(raw, jnp.float32),
    )

"""Dead features replaced by tokens that the autoencoder reconstructs badly, for autoencoders trained with an L1 term.

After Bricken et al., "Towards Monosemanticity" (2023): the tokens are drawn without replacement with a probability
proportional to the square of their squared error; such a feature's decoder row points along its token, its encoder
column too, with 0.2 of the mean length of the other columns; its bias and Adam's moments are 0. Activations are
centred by `b_dec` first.
"""

from typing import Any

import jax
import jax.numpy as jnp

from sae import autoencoder, mesh

_ENCODER_SHARE = 0.2


def replace_dead(
    params: autoencoder.Params, adam: Any, dead: jax.Array, x: jax.Array, key: jax.Array, stripes: int
) -> tuple[autoencoder.Params, Any, jax.Array]:
    """Replaces dead features, at most as many as there are tokens.

    Args:
      params: the autoencoder's arrays, striped.
      adam: the state of optax's Adam.
      dead: the dead features. bool [F]
      x: normalised activations to draw from. [B, d]
      key: random key of the draw.
      stripes: number of devices along the feature axis.

    Returns:
      The parameters, Adam's state, and which features were replaced, bool [F].
    """
    centred = x - params["b_dec"]
    residual = x - autoencoder.decode(params, autoencoder.encode(params, x, 0.0))  # [B, d]
    chance = 2 * jnp.log(jnp.square(residual).sum(1))  # [B]
    drawn = jnp.argsort(-(chance + jax.random.gumbel(key, chance.shape)))  # [B]
    # By the features' own order, so that every mesh gives a feature the same token.
    rank = mesh.stripe(jnp.cumsum(mesh.unstripe(dead, stripes)) - 1, stripes)  # [F]
    replaced = dead & (rank < x.shape[0])
    rows = autoencoder.unit_rows(centred[drawn[jnp.clip(rank, 0, x.shape[0] - 1)]])  # [F, d]
    lengths = jnp.linalg.norm(params["W_enc"], axis=0)
    length = _ENCODER_SHARE * jnp.where(dead, 0.0, lengths).sum() / jnp.maximum((~dead).sum(), 1)
    new = {"W_enc": length * rows.T, "b_enc": jnp.zeros_like(params["b_enc"]), "W_dec": rows}
    params = params | _where(replaced, new, params)
    none = jax.tree.map(jnp.zeros_like, new)
    moments = {name: moment | _where(replaced, none, moment) for name, moment in (("mu", adam.mu), ("nu", adam.nu))}
    return params, adam._replace(**moments), replaced


def _where(replaced: jax.Array, new: autoencoder.Params, old: autoencoder.Params) -> autoencoder.Params:
    rows = {"W_enc": replaced[None], "b_enc": replaced, "W_dec": replaced[:, None]}
    return {name: jnp.where(rows[name], new[name], old[name]) for name in new}

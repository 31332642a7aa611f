"""A loss of dead features, computed for these alone where they are few: most products with whole matrices are zeros."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from sae.autoencoder import Params

# Where at most one in this many features is dead, the dead ones are gathered.
_GATHERED_SHARE = 4

DeadLoss = Callable[[Params, jax.Array, jax.Array], tuple[jax.Array, Params]]


def of_dead(function: DeadLoss, params: Params, z: jax.Array, dead: jax.Array) -> tuple[jax.Array, Params]:
    """`function(params, z, dead)`, on the dead features alone where they are few. For one device along the features.

    Args:
      function: gives a loss, and its gradients, to which only dead features contribute.
      params: the autoencoder's arrays.
      z: pre-activations after the ReLU. [B, F]
      dead: the dead features. bool [F]
    """
    max_dead = len(dead) // _GATHERED_SHARE

    def gathered() -> tuple[jax.Array, Params]:
        indices = jnp.nonzero(dead, size=max_dead, fill_value=len(dead))[0]  # [max_dead]
        is_dead = jnp.arange(max_dead) < dead.sum()  # [max_dead]
        part = {
            "W_enc": params["W_enc"].at[:, indices].get(mode="fill", fill_value=0),
            "b_enc": params["b_enc"].at[indices].get(mode="fill", fill_value=0),
            "W_dec": params["W_dec"].at[indices].get(mode="fill", fill_value=0),
            "b_dec": params["b_dec"],
        }
        value, found = function(part, z.at[:, indices].get(mode="fill", fill_value=0), is_dead)
        whole = {name: jnp.zeros(array.shape, jnp.float32) for name, array in params.items()}
        return value, {
            "W_enc": whole["W_enc"].at[:, indices].set(found["W_enc"], mode="drop"),
            "b_enc": whole["b_enc"].at[indices].set(found["b_enc"], mode="drop"),
            "W_dec": whole["W_dec"].at[indices].set(found["W_dec"], mode="drop"),
            "b_dec": found["b_dec"],
        }

    if not max_dead:
        return function(params, z, dead)
    return lax.cond(dead.sum() <= max_dead, gathered, lambda: function(params, z, dead))

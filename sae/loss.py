"""The two terms of the training loss.

B: tokens of the batch, d: width of the activations, F: features, n: devices along the feature axis.
"""

import itertools

import jax
import jax.numpy as jnp

from sae import select


def nested_reconstructions(
    f: jax.Array, w_dec: jax.Array, b_dec: jax.Array, group_sizes: tuple[int, ...], stripes: int
) -> list[jax.Array]:
    """Reconstructions from the first group, the first two, and so on: a running sum, so they cost one decode.

    Args:
      f: features, striped. [B, F]
      w_dec: decoder, striped. [F, d]
      b_dec: [d]
      group_sizes: each a multiple of `stripes`.
      stripes: devices along the feature axis.

    Returns:
      One [B, d] a group.
    """
    batch, d = f.shape[0], w_dec.shape[1]
    f = f.reshape(batch, stripes, -1)
    w_dec = w_dec.reshape(stripes, -1, d)
    ends = [0, *itertools.accumulate(size // stripes for size in group_sizes)]
    reconstruction = b_dec
    levels = []
    for start, end in itertools.pairwise(ends):
        reconstruction = reconstruction + jnp.einsum("bnf,nfd->bd", f[:, :, start:end], w_dec[:, start:end])
        levels.append(reconstruction)
    return levels


def main_loss(
    f: jax.Array,
    w_dec: jax.Array,
    b_dec: jax.Array,
    x: jax.Array,
    group_sizes: tuple[int, ...],
    group_weights: tuple[float, ...],
    stripes: int,
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """Mean over groups of weight times squared error (summed over d, averaged over tokens).

    The mean over the groups comes on top of the weights, as in dictionary_learning.

    Returns:
      The loss; and, without a gradient, the squared error a group [groups] and the residual of the full
      reconstruction [B, d].
    """
    levels = nested_reconstructions(f, w_dec, b_dec, group_sizes, stripes)
    errors = jnp.stack([jnp.square(x - level).sum(1).mean() for level in levels])
    loss = jnp.mean(jnp.array(group_weights, x.dtype) * errors)
    return loss, jax.lax.stop_gradient((errors, x - levels[-1]))


def auxk_loss(z: jax.Array, w_dec: jax.Array, residual: jax.Array, dead: jax.Array) -> jax.Array:
    """How well the strongest dead features of each token explain what the others left over.

    The min(d // 2, dead) largest dead entries of each token reconstruct the residual without bias; the squared
    error is divided by the residual's variance about its batch mean (0 where that variance is 0).

    Args:
      z: pre-activations after the ReLU. [B, F]
      w_dec: [F, d]
      residual: taken as a constant. [B, d]
      dead: bool [F]
    """
    candidates = jnp.where(dead, z, 0.0)
    wanted = jnp.minimum(w_dec.shape[1] // 2, dead.sum())
    cut = _auxk_cut(jax.lax.stop_gradient(candidates), wanted)
    kept = jnp.where(candidates >= cut[:, None], candidates, 0.0)
    error = jnp.square(residual - kept @ w_dec).sum(1).mean()
    variance = jnp.square(residual - residual.mean(0)).sum(1).mean()
    return jnp.where(variance > 0, error / jnp.where(variance > 0, variance, 1.0), 0.0)


def _auxk_cut(candidates: jax.Array, wanted: jax.Array) -> jax.Array:
    """The value from which on a token's candidates are kept, [B]; 0 where every positive one is.

    No search is needed when no token has more positive candidates than wanted, as when few features are dead.
    """
    most = (candidates > 0).sum(1).max()
    return jax.lax.cond(
        most > wanted,
        lambda: select.row_cut(candidates, wanted),
        lambda: jnp.zeros(candidates.shape[0], candidates.dtype),
    )

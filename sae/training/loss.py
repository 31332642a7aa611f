"""The terms of the training loss and their gradients.

The gradients are written out, because their factors are needed in the compute dtype and because what the loss and
its gradient share is then computed once; tests compare them with automatic differentiation.

B: tokens, d: width of the activations, F: features, n: devices along the feature axis.
"""

import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from sae.autoencoder import Params
from sae.kernels import kth_largest


def contract(spec: str, a: jax.Array, b: jax.Array, dtype: str) -> jax.Array:
    """`einsum` of factors in `dtype`, summed in float32. In float32 no device may round the factors."""
    precision = lax.Precision.HIGHEST if dtype == "float32" else lax.Precision.DEFAULT
    return jnp.einsum(spec, a.astype(dtype), b.astype(dtype), precision=precision, preferred_element_type=jnp.float32)


def _groups(group_sizes: Sequence[int], stripes: int) -> list[tuple[int, int]]:
    """First and one past the last feature of each group on every device."""
    return list(itertools.pairwise([0, *itertools.accumulate(size // stripes for size in group_sizes)]))


def nested_reconstructions(
    f: jax.Array,
    w_dec: jax.Array,
    b_dec: jax.Array,
    group_sizes: tuple[int, ...],
    stripes: int,
    dtype: str = "float32",
) -> list[jax.Array]:
    """Reconstructions from the first group, the first two, and so on: a running sum, so they cost one decode.

    Args:
      f: features, striped. [B, F]
      w_dec: decoder, striped. [F, d]
      b_dec: [d]
      group_sizes: each a multiple of `stripes`.
      stripes: devices along the feature axis.
      dtype: of the factors.

    Returns:
      One [B, d] a group.
    """
    batch, d = f.shape[0], w_dec.shape[1]
    f = f.reshape(batch, stripes, -1)
    w_dec = w_dec.reshape(stripes, -1, d)
    reconstruction = b_dec
    levels = []
    for start, end in _groups(group_sizes, stripes):
        part = contract("bnf,nfd->bd", f[:, :, start:end], w_dec[:, start:end], dtype)
        reconstruction = reconstruction + part
        levels.append(reconstruction)
    return levels


def nested_gradients(
    f: jax.Array, w_dec: jax.Array, pulls: Sequence[jax.Array], group_sizes: tuple[int, ...], stripes: int, dtype: str
) -> tuple[jax.Array, jax.Array]:
    """The gradients of a loss through `nested_reconstructions`.

    Args:
      f: [B, F]
      w_dec: [F, d]
      pulls: gradient with respect to each group's contribution. [B, d] each
      group_sizes: as there.
      stripes: as there.
      dtype: of the factors.

    Returns:
      Those with respect to f [B, F] and w_dec [F, d].
    """
    (batch, n_features), d = f.shape, w_dec.shape[1]
    f = f.reshape(batch, stripes, -1)
    w_dec = w_dec.reshape(stripes, -1, d)
    d_f, d_w = [], []
    for (start, end), pull in zip(_groups(group_sizes, stripes), pulls, strict=True):
        d_f.append(contract("bd,nfd->bnf", pull, w_dec[:, start:end], dtype))
        d_w.append(contract("bnf,bd->nfd", f[:, :, start:end], pull, dtype))
    return jnp.concatenate(d_f, 2).reshape(batch, n_features), jnp.concatenate(d_w, 1).reshape(n_features, d)


def encoder_gradients(centred: jax.Array, d_z: jax.Array, dtype: str) -> tuple[jax.Array, jax.Array]:
    """The gradients with respect to W_enc [d, F] and b_enc [F].

    Args:
      centred: activations minus b_dec. [B, d]
      d_z: gradient with respect to the pre-activations. [B, F]
      dtype: of the factors.
    """
    return contract("bd,bf->df", centred, d_z, dtype), d_z.sum(0)


def level_pulls(residuals: Sequence[jax.Array], weights: Sequence[float], tokens: int) -> list[jax.Array]:
    """Gradient of sum_j w_j E_j with respect to each group's contribution to the reconstruction.

    E_j is the squared error of level j, summed over d and averaged over `tokens`; a group contributes to its own
    level and to all later ones, so its gradient is a sum over those.

    Args:
      residuals: reconstruction minus activation at each level. [B, d] each
      weights: one a level.
      tokens: of the batch.

    Returns:
      One [B, d] a group.
    """
    own = [(2.0 * weight / tokens) * residual for weight, residual in zip(weights, residuals, strict=True)]
    return list(itertools.accumulate(reversed(own)))[::-1]


def spread(residual: jax.Array) -> jax.Array:
    """Squared distance of `residual [B, d]` from its mean over the tokens, summed over d and averaged. []"""
    return jnp.square(residual - residual.mean(0)).sum(1).mean()


def auxk(
    params: Params, x: jax.Array, z: jax.Array, left: jax.Array, dead: jax.Array, scale: jax.Array, dtype: str
) -> tuple[jax.Array, Params]:
    """How well the strongest dead features of each token explain what the others left over.

    The min(d // 2, dead) largest dead entries of each token reconstruct `left` without bias.

    Args:
      params: of the autoencoder, or of a part of its features that has all dead ones.
      x: activations. [B, d]
      z: pre-activations after the ReLU. [B, F]
      left: activation minus reconstruction, taken as a constant. [B, d]
      dead: bool [F]
      scale: factor of the summed squared error; 0 gives 0. []
      dtype: of the factors of products.

    Returns:
      The loss and its gradients.
    """
    candidates = jnp.where(dead, z, 0.0)
    wanted = jnp.minimum(x.shape[1] // 2, dead.sum())
    cut = _auxk_cut(candidates, wanted)
    kept = jnp.where(candidates >= cut[:, None], candidates, 0.0)
    error = contract("bf,fd->bd", kept, params["W_dec"], dtype) - left
    pull = 2.0 * scale * error
    d_z = jnp.where(kept > 0, contract("bd,fd->bf", pull, params["W_dec"], dtype), 0.0)
    d_w_enc, d_b_enc = encoder_gradients(x - params["b_dec"], d_z, dtype)
    return scale * jnp.square(error).sum(), {
        "W_enc": d_w_enc,
        "b_enc": d_b_enc,
        "W_dec": contract("bf,bd->fd", kept, pull, dtype),
        "b_dec": -contract("f,df->d", d_b_enc, params["W_enc"], "float32"),
    }


def _auxk_cut(candidates: jax.Array, wanted: jax.Array) -> jax.Array:
    """The value from which on a token's candidates are kept, [B]; 0 where every positive one is.

    No search is needed when no token has more positive candidates than wanted, as when few features are dead.
    """
    most = (candidates > 0).sum(1).max()
    return lax.cond(
        most > wanted,
        lambda: kth_largest.row_cut(candidates, wanted),
        lambda: jnp.zeros(candidates.shape[0], candidates.dtype),
    )

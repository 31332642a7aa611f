"""Products of nested (Matryoshka) dictionaries, and their gradients, at the cost of one dictionary.

The gradients are written out: their factors are needed in the compute dtype, and what the loss and its gradient share
is computed once.

B: tokens, d: width of the activations, F: features, G: groups, n: devices along the feature axis.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from sae.autoencoder import Params


class MainGradients(NamedTuple):
    """What the squared errors of all nested reconstructions, and the L1 penalty, give.

    Attributes:
      gradients: the gradients of the parameters.
      residual: activation minus whole reconstruction. [B, d]
      errors: the squared error of each nested reconstruction, summed over tokens and d. [G]
      l1: the sum of all features. []
    """

    gradients: Params
    residual: jax.Array
    errors: jax.Array
    l1: jax.Array


def contract(spec: str, a: jax.Array, b: jax.Array, dtype: str) -> jax.Array:
    """`einsum` of factors in `dtype`, summed in float32. In float32 no device may round the factors."""
    precision = lax.Precision.HIGHEST if dtype == "float32" else lax.Precision.DEFAULT
    return jnp.einsum(spec, a.astype(dtype), b.astype(dtype), precision=precision, preferred_element_type=jnp.float32)


def _group_bounds(group_sizes: Sequence[int], stripes: int) -> list[tuple[int, int]]:
    """First and one past the last feature of each group on every device."""
    return list(itertools.pairwise([0, *itertools.accumulate(size // stripes for size in group_sizes)]))


@jax.named_scope("decode")
def reconstructions(
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
      b_dec: bias of the decoder. [d]
      group_sizes: features of each group, multiples of `stripes`.
      stripes: number of devices along the feature axis.
      dtype: dtype of the factors of products.

    Returns:
      One reconstruction [B, d] per group.
    """
    f = f.reshape(f.shape[0], stripes, -1)  # [B, n, F / n]
    w_dec = w_dec.reshape(stripes, -1, w_dec.shape[1])  # [n, F / n, d]
    reconstruction = b_dec
    nested = []
    for start, end in _group_bounds(group_sizes, stripes):
        part = contract("bnf,nfd->bd", f[:, :, start:end], w_dec[:, start:end], dtype)  # [B, d]
        reconstruction = reconstruction + part  # [B, d]
        nested.append(reconstruction)
    return nested


def reconstruction_gradients(
    f: jax.Array,
    w_dec: jax.Array,
    cotangents: Sequence[jax.Array],
    group_sizes: tuple[int, ...],
    stripes: int,
    dtype: str,
) -> tuple[jax.Array, jax.Array]:
    """The gradients of a loss through `reconstructions`.

    Args:
      f: features, striped. [B, F]
      w_dec: decoder, striped. [F, d]
      cotangents: gradient with respect to each group's contribution, see `group_cotangents`. [B, d] each
      group_sizes: features of each group, multiples of `stripes`.
      stripes: number of devices along the feature axis.
      dtype: dtype of the factors of products.

    Returns:
      The gradients with respect to f [B, F] and w_dec [F, d].
    """
    (batch, n_features), d = f.shape, w_dec.shape[1]
    f = f.reshape(batch, stripes, -1)  # [B, n, F / n]
    w_dec = w_dec.reshape(stripes, -1, d)  # [n, F / n, d]
    d_f, d_w = [], []
    for (start, end), cotangent in zip(_group_bounds(group_sizes, stripes), cotangents, strict=True):
        d_f.append(contract("bd,nfd->bnf", cotangent, w_dec[:, start:end], dtype))
        d_w.append(contract("bnf,bd->nfd", f[:, :, start:end], cotangent, dtype))
    return jnp.concatenate(d_f, 2).reshape(batch, n_features), jnp.concatenate(d_w, 1).reshape(n_features, d)


def group_cotangents(residuals: Sequence[jax.Array], weights: Sequence[float], tokens: int) -> list[jax.Array]:
    """Gradient of the weighted errors with respect to each group's contribution to the reconstruction.

    The error of a nested reconstruction is its squared error, summed over d and averaged over `tokens`. A group
    contributes to its own reconstruction and to all later ones, so its gradient is a sum over those.

    Args:
      residuals: each nested reconstruction minus the activation. [B, d] each
      weights: weight of each nested reconstruction's error.
      tokens: number of tokens of the whole batch.

    Returns:
      One cotangent [B, d] per group.
    """
    own = [(2.0 * weight / tokens) * residual for weight, residual in zip(weights, residuals, strict=True)]
    return list(itertools.accumulate(reversed(own)))[::-1]


def encoder_gradients(centred: jax.Array, d_z: jax.Array, dtype: str) -> tuple[jax.Array, jax.Array]:
    """The gradients with respect to W_enc [d, F] and b_enc [F].

    Args:
      centred: activations minus b_dec. [B, d]
      d_z: gradient with respect to the pre-activations. [B, F]
      dtype: dtype of the factors of products.
    """
    return contract("bd,bf->df", centred, d_z, dtype), d_z.sum(0)


def parameter_gradients(
    params: Params, w_enc: jax.Array, b_enc: jax.Array, w_dec: jax.Array, b_dec: jax.Array
) -> Params:
    """All gradients, from those of each array; `b_dec [d]` is what comes through the decoder alone."""
    through_encoder = contract("f,df->d", b_enc, params["W_enc"], "float32")  # [d]
    return {"W_enc": w_enc, "b_enc": b_enc, "W_dec": w_dec, "b_dec": b_dec - through_encoder}

"""Products of nested (Matryoshka) dictionaries, and their gradients, at the cost of one dictionary.

The gradients are written out: their factors are needed in the compute dtype, and what the loss and its gradient share
is computed once.

B: tokens, d: width of the activations, F: features, G: groups, n: devices along the feature axis.
"""

import functools
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from sae import mesh
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


def weight_gradient(spec: str, a: jax.Array, b: jax.Array, dtype: str) -> jax.Array:
    """`contract` over the tokens, for a matrix's gradient: the sums of each device are added up in `dtype`.

    `spec` is one of "bd,bf->df", "bf,bd->fd" and "bnf,bd->nfd", whose sizes the factors and the float32 result have.

    In bfloat16 half as many bytes travel between the devices along the data axis, and a sum is rounded as it is where
    PyTorch trains with autocast, whose products give gradients in bfloat16.
    """
    if not mesh.splits_tokens():
        on_cpu = functools.partial(_weight_gradient_on_cpu, spec, dtype)
        return lax.platform_dependent(a, b, cpu=on_cpu, default=lambda a, b: contract(spec, a, b, dtype))
    precision = lax.Precision.HIGHEST if dtype == "float32" else lax.Precision.DEFAULT
    return jnp.einsum(spec, a.astype(dtype), b.astype(dtype), precision=precision).astype(jnp.float32)


def _weight_gradient_on_cpu(spec: str, dtype: str, a: jax.Array, b: jax.Array) -> jax.Array:
    """`weight_gradient` that transposes the factor of width d and the result, not the one of width F.

    Without the barriers XLA transposes the wide factor, or multiplies it as it lies at half the speed (jaxlib 0.10).
    """
    first, second = spec.partition("->")[0].split(",")
    if first == "bd":
        narrow, wide, axes = a, b, second  # [B, d], [B, ..., F]
    else:
        narrow, wide, axes = b, a, first
    transposed = lax.optimization_barrier(narrow.astype(dtype).T)  # [d, B]
    gradient = contract(f"db,{axes}->d{axes[1:]}", transposed, wide, dtype)  # [d, ..., F]
    return gradient if first == "bd" else jnp.moveaxis(lax.optimization_barrier(gradient), 0, -1)


def groups(x: jax.Array, axis: int, group_sizes: Sequence[int], stripes: int) -> list[jax.Array]:
    """The part of each group in an array of striped features.

    Args:
      x: an array whose `axis` are features, striped. [..., F, ...]
      axis: the axis.
      group_sizes: features of each group, multiples of `stripes`.
      stripes: number of devices along the feature axis.

    Returns:
      One array [..., n, F_g / n, ...] per group.
    """
    x = x.reshape(*x.shape[:axis], stripes, -1, *x.shape[axis + 1 :])  # [..., n, F / n, ...]
    bounds = itertools.pairwise([0, *itertools.accumulate(size // stripes for size in group_sizes)])
    return [lax.slice_in_dim(x, start, end, axis=axis + 1) for start, end in bounds]


def ungroup(parts: Sequence[jax.Array], axis: int) -> jax.Array:
    """The inverse of `groups`."""
    x = jnp.concatenate(parts, axis + 1)  # [..., n, F / n, ...]
    return x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])


@jax.named_scope("decode")
def reconstructions(
    f: Sequence[jax.Array], w_dec: Sequence[jax.Array], b_dec: jax.Array, dtype: str = "float32"
) -> list[jax.Array]:
    """Reconstructions from the first group, the first two, and so on: a running sum, so they cost one decode.

    On a feature axis each device keeps the sums over all devices for its part of d alone.

    Args:
      f: features of each group. [B, n, F_g / n] each
      w_dec: decoder of each group. [n, F_g / n, d] each
      b_dec: bias of the decoder. [d]
      dtype: dtype of the factors of products.

    Returns:
      One reconstruction [B, d] per group.
    """
    parts = [contract("bnf,nfd->bd", *factors, dtype) for factors in zip(f, w_dec, strict=True)]  # [B, d] each
    placed = [mesh.place(part, mesh.DATA, mesh.FEATURE) for part in lax.optimization_barrier(parts)]
    return list(itertools.accumulate(placed, initial=b_dec))[1:]


def reconstruction_gradients(
    f: Sequence[jax.Array], w_dec: Sequence[jax.Array], cotangents: Sequence[jax.Array], dtype: str
) -> tuple[list[jax.Array], list[jax.Array]]:
    """The gradients of a loss through `reconstructions`.

    Args:
      f: features of each group. [B, n, F_g / n] each
      w_dec: decoder of each group. [n, F_g / n, d] each
      cotangents: gradient with respect to each group's contribution, see `group_cotangents`. [B, d] each
      dtype: dtype of the factors of products.

    Returns:
      For each group the gradients with respect to f [B, n, F_g / n] and w_dec [n, F_g / n, d].
    """
    whole = [mesh.place(cotangent.astype(dtype), mesh.DATA, None) for cotangent in cotangents]  # [B, d] each
    d_f = [contract("bd,nfd->bnf", cotangent, part, dtype) for cotangent, part in zip(whole, w_dec, strict=True)]
    d_w = [weight_gradient("bnf,bd->nfd", part, cotangent, dtype) for part, cotangent in zip(f, whole, strict=True)]
    return d_f, d_w


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


def parameter_gradients(
    params: Params, w_enc: jax.Array, b_enc: jax.Array, w_dec: jax.Array, b_dec: jax.Array
) -> Params:
    """All gradients, from those of each array; `b_dec [d]` is what comes through the decoder alone."""
    through_encoder = contract("f,df->d", b_enc, params["W_enc"], "float32")  # [d]
    gradients = {"W_enc": w_enc, "b_enc": b_enc, "W_dec": w_dec, "b_dec": b_dec - through_encoder}
    return mesh.place_params(gradients)

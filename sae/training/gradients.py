"""Gradients of the training loss for features that have been chosen, by whole matrices or by the kept entries alone.

b: tokens of a part of the batch, d: width of the activations, F: features, G: groups.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from sae import autoencoder
from sae.kernels import kept_entries
from sae.training import loss
from sae.training.config import SaeConfig, TrainConfig

Terms = dict[str, jax.Array]


# Where at most one in so many features is dead, the auxiliary loss is computed for the dead ones alone.
_FEW = 4


class _Main(NamedTuple):
    """What the squared errors of all levels, and the L1 term, give.

    Attributes:
      gradients: of the parameters.
      left: what the whole reconstruction leaves over. [b, d]
      errors: of each level, summed over its tokens and over d. [G]
      l1: the sum of all features. []
    """

    gradients: autoencoder.Params
    left: jax.Array
    errors: jax.Array
    l1: jax.Array


def _gradients(
    params: autoencoder.Params, w_enc: jax.Array, b_enc: jax.Array, w_dec: jax.Array, b_dec: jax.Array
) -> autoencoder.Params:
    """From the gradients of the arrays, of which `b_dec [d]` is what comes through the decoder alone."""
    through_encoder = loss.contract("f,df->d", b_enc, params["W_enc"], "float32")
    return {"W_enc": w_enc, "b_enc": b_enc, "W_dec": w_dec, "b_dec": b_dec - through_encoder}


def _by_matrices(
    params: autoencoder.Params, x: jax.Array, z: jax.Array, keep: jax.Array, sae: SaeConfig, config: TrainConfig
) -> _Main:
    """See `of_tokens`."""
    tokens, stripes, dtype = config.batch_size, config.mesh[1], config.dtype
    f = jnp.where(keep, z, 0.0)
    levels = loss.nested_reconstructions(f, params["W_dec"], params["b_dec"], sae.group_sizes, stripes, dtype)
    residuals = [level - x for level in levels]
    pulls = loss.level_pulls(residuals, sae.group_weights, tokens)
    d_f, d_w_dec = loss.nested_gradients(f, params["W_dec"], pulls, sae.group_sizes, stripes, dtype)
    d_z = jnp.where(keep, d_f + sae.l1 / tokens, 0.0)
    d_w_enc, d_b_enc = loss.encoder_gradients(x - params["b_dec"], d_z, dtype)
    gradients = _gradients(params, d_w_enc, d_b_enc, d_w_dec, pulls[0].sum(0))
    errors = jnp.stack([jnp.square(residual).sum() for residual in residuals])
    return _Main(gradients, -residuals[-1], errors, f.sum())


def _by_entries(
    params: autoencoder.Params, x: jax.Array, z: jax.Array, keep: jax.Array, sae: SaeConfig, config: TrainConfig
) -> _Main:
    """See `of_tokens`. The sums of `_by_matrices`, without the zeros. E: places for kept entries, k a token."""
    tokens, groups = x.shape[0], len(sae.group_sizes)
    size = min(sae.k * tokens, z.size)

    def factor(array: jax.Array) -> jax.Array:
        return array.astype(config.dtype).astype(jnp.float32)

    by_token = kept_entries.entries(keep, size, sae.group_sizes)
    f = jnp.where(by_token.used, z[by_token.rows, by_token.columns], 0.0)  # [E]
    w_dec = factor(params["W_dec"])
    parts = kept_entries.product(factor(f), by_token.columns, by_token.starts, w_dec)  # [b * G, d]
    levels = params["b_dec"] + jnp.cumsum(parts.reshape(tokens, groups, -1), 1)
    residuals = levels - x[:, None]  # [b, G, d]
    by_level = [residuals[:, level] for level in range(groups)]
    pulls = jnp.stack(loss.level_pulls(by_level, sae.group_weights, config.batch_size), 1)  # [b, G, d]

    by_feature = kept_entries.entries(keep, size, by_column=True)
    group_of = jnp.asarray(np.repeat(np.arange(groups, dtype=np.int32), sae.group_sizes))
    pull_of = by_feature.columns * groups + group_of[by_feature.rows]  # [E], rows of `flat`
    flat = factor(pulls).reshape(tokens * groups, -1)
    f = jnp.where(by_feature.used, z[by_feature.columns, by_feature.rows], 0.0)  # [E]
    d_w_dec = kept_entries.product(factor(f), pull_of, by_feature.starts, flat)
    d_z = kept_entries.sampled_product(flat, w_dec, pull_of, by_feature.rows) + sae.l1 / config.batch_size
    d_z = jnp.where(by_feature.used, d_z, 0.0)
    centred = factor(x - params["b_dec"])
    d_w_enc = kept_entries.product(factor(d_z), by_feature.columns, by_feature.starts, centred).T
    d_b_enc = kept_entries.product(d_z, by_feature.columns, by_feature.starts, jnp.ones(tokens, jnp.float32))
    gradients = _gradients(params, d_w_enc, d_b_enc, d_w_dec, pulls[:, 0].sum(0))
    return _Main(gradients, -residuals[:, -1], jnp.square(residuals).sum((0, 2)), f.sum())


def _auxk(
    params: autoencoder.Params,
    x: jax.Array,
    z: jax.Array,
    left: jax.Array,
    dead: jax.Array,
    scale: jax.Array,
    config: TrainConfig,
) -> tuple[jax.Array, autoencoder.Params]:
    """`loss.auxk`, of the dead features alone where they are few and no feature lies on another device."""

    def of_all() -> tuple[jax.Array, autoencoder.Params]:
        return loss.auxk(params, x, z, left, dead, scale, config.dtype)

    def of_dead() -> tuple[jax.Array, autoencoder.Params]:
        places = jnp.nonzero(dead, size=few, fill_value=len(dead))[0]
        among = jnp.arange(few) < dead.sum()
        part = {
            "W_enc": params["W_enc"].at[:, places].get(mode="fill", fill_value=0),
            "b_enc": params["b_enc"].at[places].get(mode="fill", fill_value=0),
            "W_dec": params["W_dec"].at[places].get(mode="fill", fill_value=0),
            "b_dec": params["b_dec"],
        }
        of_part = z.at[:, places].get(mode="fill", fill_value=0)
        value, found = loss.auxk(part, x, of_part, left, among, scale, config.dtype)
        whole = jax.tree.map(jnp.zeros_like, params)
        return value, {
            "W_enc": whole["W_enc"].at[:, places].set(found["W_enc"], mode="drop"),
            "b_enc": whole["b_enc"].at[places].set(found["b_enc"], mode="drop"),
            "W_dec": whole["W_dec"].at[places].set(found["W_dec"], mode="drop"),
            "b_dec": found["b_dec"],
        }

    few = len(dead) // _FEW
    if config.mesh[1] > 1 or not few:
        return of_all()
    return lax.cond(dead.sum() <= few, of_dead, of_all)


def of_tokens(
    params: autoencoder.Params,
    x: jax.Array,
    z: jax.Array,
    keep: jax.Array,
    dead: jax.Array,
    variance: jax.Array | None,
    sae: SaeConfig,
    config: TrainConfig,
    by_entries: bool,
) -> tuple[autoencoder.Params, Terms]:
    """Gradients of the loss on a part of the batch, and that part's terms of the loss.

    Args:
      params: of the autoencoder.
      x: [b, d]
      z: pre-activations after the ReLU. [b, F]
      keep: those that are features; at most k a token on average if `by_entries`. bool [b, F]
      dead: bool [F]
      variance: of what the whole batch leaves over; None where this part is the whole batch. []
      sae: the autoencoder.
      config: the training.
      by_entries: multiply the kept entries alone; for one CPU.
    """
    tokens = config.batch_size
    main = (_by_entries if by_entries else _by_matrices)(params, x, z, keep, sae, config)

    def with_auxk() -> tuple[autoencoder.Params, jax.Array]:
        about = loss.spread(main.left) if variance is None else variance
        scale = jnp.where(about > 0, config.auxk_alpha / jnp.where(about > 0, tokens * about, 1.0), 0.0)
        auxk, gradients = _auxk(params, x, z, main.left, dead, scale, config)
        return jax.tree.map(jnp.add, main.gradients, gradients), auxk / config.auxk_alpha

    def without() -> tuple[autoencoder.Params, jax.Array]:
        return main.gradients, jnp.zeros((), jnp.float32)

    total, auxk = lax.cond(dead.any(), with_auxk, without) if config.auxk_alpha else without()
    return total, {"level_errors": main.errors / tokens, "auxk": auxk, "l1": main.l1 / tokens}


def in_parts(
    params: autoencoder.Params,
    x: jax.Array,
    z: jax.Array,
    keep: jax.Array,
    dead: jax.Array,
    sae: SaeConfig,
    config: TrainConfig,
) -> tuple[autoencoder.Params, Terms]:
    """`of_tokens` of the whole batch by matrices, summed over microbatches."""
    parts = tuple(_parts(array, config.microbatches) for array in (x, z, keep))

    def left(part: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        x, z, keep = part
        f = jnp.where(keep, z, 0.0)
        groups, stripes = (sae.n_features,), config.mesh[1]
        return x - loss.nested_reconstructions(f, params["W_dec"], params["b_dec"], groups, stripes, config.dtype)[0]

    def variance() -> jax.Array:
        return loss.spread(lax.map(left, parts).reshape(x.shape))

    # The auxiliary loss is divided by a variance that only the whole batch gives.
    about = lax.cond(dead.any(), variance, lambda: jnp.ones((), jnp.float32)) if config.auxk_alpha else None

    def of_part(part: tuple[jax.Array, ...]) -> tuple[autoencoder.Params, Terms]:
        x, z, keep = part
        return of_tokens(params, x, z, keep, dead, about, sae, config, by_entries=False)

    def add(total: Any, part: tuple[jax.Array, ...]) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, of_part(part)), None

    shapes = jax.eval_shape(lambda: of_part(tuple(array[0] for array in parts)))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    return lax.scan(add, zeros, parts)[0]


def _parts(array: jax.Array, n: int) -> jax.Array:
    """`array [B, ...]` in n interleaved parts `[n, B / n, ...]`, so that each lies evenly on the data axis."""
    return array.reshape(array.shape[0] // n, n, *array.shape[1:]).swapaxes(0, 1)

"""The gradients of `sae.training.loss`, written out, for features that have been selected.

They equal automatic differentiation of the loss, which tests compare them with. That takes 1.1 times as long by whole
matrices and 3.4 times as long as the kept entries do on a CPU (2,048 tokens, 512 dimensions, 4,096 features, k = 64),
and knows no compute dtype.

b: tokens of a part of the batch, d: width of the activations, F: features, G: groups.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from sae.autoencoder import Params
from sae.kernels import few_dead, kept_gradients, kth_largest, nested
from sae.kernels.nested import MainGradients, contract
from sae.training.config import SaeConfig, TrainConfig
from sae.training.loss import total_variance

Terms = dict[str, jax.Array]


def by_kept_entries(
    params: Params,
    x: jax.Array,
    z: jax.Array,
    keep: jax.Array,
    dead: jax.Array,
    sae: SaeConfig,
    config: TrainConfig,
) -> tuple[Params, Terms]:
    """As `by_matrices`, from the selected entries alone: for one CPU, and at most k features per token on average."""
    main = kept_gradients.main_gradients(
        params,
        x,
        z,
        keep,
        k=sae.k,
        group_sizes=sae.group_sizes,
        group_weights=sae.group_weights,
        l1=sae.l1,
        dtype=config.dtype,
    )
    return _with_auxiliary(params, x, z, dead, main, None, config)


def by_matrices(
    params: Params,
    x: jax.Array,
    z: jax.Array,
    keep: jax.Array,
    dead: jax.Array,
    sae: SaeConfig,
    config: TrainConfig,
) -> tuple[Params, Terms]:
    """Gradients of the loss on a batch, summed over its microbatches, and the terms of the loss.

    Args:
      params: the autoencoder's arrays.
      x: normalised activations. [B, d]
      z: pre-activations after the ReLU. [B, F]
      keep: which of them are features. bool [B, F]
      dead: the dead features. bool [F]
      sae: the autoencoder.
      config: the training.

    Returns:
      Gradients of the parameters, and `level_errors` [G] (of each nested reconstruction), `auxk` [] and `l1` [], each
      averaged over the tokens.
    """
    if config.microbatches == 1:
        return _with_auxiliary(params, x, z, dead, _main(params, x, z, keep, sae, config), None, config)
    parts = tuple(_parts(array, config.microbatches) for array in (x, z, keep))

    def residual(part: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        x, z, keep = part
        f, groups, stripes = jnp.where(keep, z, 0.0), (sae.n_features,), config.mesh[1]
        return x - nested.reconstructions(f, params["W_dec"], params["b_dec"], groups, stripes, config.dtype)[0]

    def variance_of_residuals() -> jax.Array:
        return total_variance(lax.map(residual, parts).reshape(x.shape))

    # The auxiliary loss is divided by a variance that only the whole batch gives.
    variance = None
    if config.auxk_alpha:
        variance = lax.cond(dead.any(), variance_of_residuals, lambda: jnp.ones((), jnp.float32))

    def of_part(part: tuple[jax.Array, ...]) -> tuple[Params, Terms]:
        x, z, keep = part
        return _with_auxiliary(params, x, z, dead, _main(params, x, z, keep, sae, config), variance, config)

    def add(total: Any, part: tuple[jax.Array, ...]) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, of_part(part)), None

    shapes = jax.eval_shape(lambda: of_part(tuple(array[0] for array in parts)))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    return lax.scan(add, zeros, parts)[0]


def _parts(array: jax.Array, n: int) -> jax.Array:
    """`array [B, ...]` in n interleaved parts `[n, B / n, ...]`, so that each lies evenly on the data axis."""
    return array.reshape(array.shape[0] // n, n, *array.shape[1:]).swapaxes(0, 1)


def _main(
    params: Params, x: jax.Array, z: jax.Array, keep: jax.Array, sae: SaeConfig, config: TrainConfig
) -> MainGradients:
    """The gradients of the nested reconstructions' errors and the L1 penalty on a part of the batch."""
    tokens, stripes, dtype = config.batch_size, config.mesh[1], config.dtype
    f = jnp.where(keep, z, 0.0)  # [b, F]
    reconstructions = nested.reconstructions(f, params["W_dec"], params["b_dec"], sae.group_sizes, stripes, dtype)
    residuals = [reconstruction - x for reconstruction in reconstructions]  # [b, d] each
    cotangents = nested.group_cotangents(residuals, sae.group_weights, tokens)  # [b, d] each
    d_f, d_w_dec = nested.reconstruction_gradients(f, params["W_dec"], cotangents, sae.group_sizes, stripes, dtype)
    d_z = jnp.where(keep, d_f + sae.l1 / tokens, 0.0)  # [b, F]
    d_w_enc, d_b_enc = nested.encoder_gradients(x - params["b_dec"], d_z, dtype)  # [d, F], [F]
    gradients = nested.parameter_gradients(params, d_w_enc, d_b_enc, d_w_dec, cotangents[0].sum(0))
    errors = jnp.stack([jnp.square(residual).sum() for residual in residuals])  # [G]
    return MainGradients(gradients, -residuals[-1], errors, f.sum())


def _with_auxiliary(
    params: Params,
    x: jax.Array,
    z: jax.Array,
    dead: jax.Array,
    main: MainGradients,
    variance: jax.Array | None,
    config: TrainConfig,
) -> tuple[Params, Terms]:
    """Adds the auxiliary loss to the main gradients of a part of the batch.

    `variance []` is the total variance of the whole batch's residuals; None where this part is the whole batch.
    """
    tokens = config.batch_size

    def with_auxiliary() -> tuple[Params, jax.Array]:
        total = total_variance(main.residual) if variance is None else variance
        scale = jnp.where(total > 0, config.auxk_alpha / jnp.where(total > 0, tokens * total, 1.0), 0.0)

        def auxiliary(params: Params, z: jax.Array, dead: jax.Array) -> tuple[jax.Array, Params]:
            return _auxiliary(params, x, z, main.residual, dead, scale, config.dtype)

        one_device = config.mesh[1] == 1
        auxk, gradients = few_dead.of_dead(auxiliary, params, z, dead) if one_device else auxiliary(params, z, dead)
        return jax.tree.map(jnp.add, main.gradients, gradients), auxk / config.auxk_alpha

    def without() -> tuple[Params, jax.Array]:
        return main.gradients, jnp.zeros((), jnp.float32)

    gradients, auxk = lax.cond(dead.any(), with_auxiliary, without) if config.auxk_alpha else without()
    return gradients, {"level_errors": main.errors / tokens, "auxk": auxk, "l1": main.l1 / tokens}


def _auxiliary(
    params: Params,
    x: jax.Array,
    z: jax.Array,
    residual: jax.Array,
    dead: jax.Array,
    scale: jax.Array,
    dtype: str,
) -> tuple[jax.Array, Params]:
    """The auxiliary loss of the strongest dead features of each token, and its gradients.

    Args:
      params: the autoencoder's arrays, or those of a part of its features that has all dead ones.
      x: normalised activations. [b, d]
      z: pre-activations after the ReLU. [b, F]
      residual: activation minus reconstruction, a constant here. [b, d]
      dead: the dead features. bool [F]
      scale: factor of the summed squared error; 0 gives 0. []
      dtype: dtype of the factors of products.
    """
    candidates = jnp.where(dead, z, 0.0)  # [b, F]
    threshold = _row_threshold(candidates, jnp.minimum(x.shape[1] // 2, dead.sum()))  # [b]
    kept = jnp.where(candidates >= threshold[:, None], candidates, 0.0)  # [b, F]
    error = contract("bf,fd->bd", kept, params["W_dec"], dtype) - residual  # [b, d]
    cotangent = 2.0 * scale * error  # [b, d]
    d_z = jnp.where(kept > 0, contract("bd,fd->bf", cotangent, params["W_dec"], dtype), 0.0)  # [b, F]
    d_w_enc, d_b_enc = nested.encoder_gradients(x - params["b_dec"], d_z, dtype)  # [d, F], [F]
    return scale * jnp.square(error).sum(), {
        "W_enc": d_w_enc,
        "b_enc": d_b_enc,
        "W_dec": contract("bf,bd->fd", kept, cotangent, dtype),
        "b_dec": -contract("f,df->d", d_b_enc, params["W_enc"], "float32"),
    }


def _row_threshold(candidates: jax.Array, count: jax.Array) -> jax.Array:
    """The value from which on each token's candidates `[b, F]` are kept; 0 where every positive one is. [b]

    No search is needed when no token has more than `count` positive candidates, as when few features are dead.
    """
    return lax.cond(
        (candidates > 0).sum(1).max() > count,
        lambda: kth_largest.row_threshold(candidates, count),
        lambda: jnp.zeros(candidates.shape[0], candidates.dtype),
    )

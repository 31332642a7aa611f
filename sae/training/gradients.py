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

from sae import mesh
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
    f: jax.Array,
    dead: jax.Array,
    sae: SaeConfig,
    config: TrainConfig,
) -> tuple[Params, Terms]:
    """Gradients of the loss on a batch, summed over its microbatches, and the terms of the loss.

    Args:
      params: the autoencoder's arrays.
      x: normalised activations. [B, d]
      z: pre-activations after the ReLU. [B, F]
      f: features: `z` where it is selected, else 0, in the compute dtype. [B, F]
      dead: the dead features. bool [F]
      sae: the autoencoder.
      config: the training.

    Returns:
      Gradients of the parameters, and `level_errors` [G] (of each nested reconstruction), `auxk` [] and `l1` [], each
      averaged over the tokens.
    """
    if config.microbatches == 1:
        return _with_auxiliary(params, x, z, dead, _main(params, x, f, sae, config), None, config)
    parts = tuple(_parts(array, config.microbatches) for array in (x, z, f))

    def residual(part: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        x, _, f = part
        f, w_dec = f[:, None], params["W_dec"][None]  # one group, whose order does not matter
        return x - nested.reconstructions([f], [w_dec], params["b_dec"], config.dtype)[0]

    def variance_of_residuals() -> jax.Array:
        return total_variance(lax.map(residual, parts).reshape(x.shape))

    # The auxiliary loss is divided by a variance that only the whole batch gives.
    variance = None
    if config.auxk_alpha:
        variance = lax.cond(dead.any(), variance_of_residuals, lambda: jnp.ones((), jnp.float32))

    def of_part(part: tuple[jax.Array, ...]) -> tuple[Params, Terms]:
        x, z, f = part
        return _with_auxiliary(params, x, z, dead, _main(params, x, f, sae, config), variance, config)

    def add(total: Any, part: tuple[jax.Array, ...]) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, of_part(part)), None

    shapes = jax.eval_shape(lambda: of_part(tuple(array[0] for array in parts)))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    return lax.scan(add, zeros, parts)[0]


def _parts(array: jax.Array, n: int) -> jax.Array:
    """`array [B, ...]` in n interleaved parts `[n, B / n, ...]`, so that each lies evenly on the data axis."""
    return array.reshape(array.shape[0] // n, n, *array.shape[1:]).swapaxes(0, 1)


def _main(params: Params, x: jax.Array, f: jax.Array, sae: SaeConfig, config: TrainConfig) -> MainGradients:
    """The gradients of the nested reconstructions' errors and the L1 penalty on a part of the batch."""
    tokens, dtype = config.batch_size, config.dtype
    striped = (sae.group_sizes, config.mesh[1])
    f_of = nested.groups(f, 1, *striped)  # [b, n, F_g / n] each
    w_dec = nested.groups(params["W_dec"], 0, *striped)  # [n, F_g / n, d] each
    split = mesh.place(x, mesh.DATA, mesh.FEATURE)  # [b, d], as the reconstructions lie
    residuals = [nested_x - split for nested_x in nested.reconstructions(f_of, w_dec, params["b_dec"], dtype)]
    cotangents = nested.group_cotangents(residuals, sae.group_weights, tokens)  # [b, d] each
    d_f, d_w_dec = nested.reconstruction_gradients(f_of, w_dec, cotangents, dtype)
    parts = [jnp.where(of > 0, d_of + sae.l1 / tokens, 0.0) for of, d_of in zip(f_of, d_f, strict=True)]
    d_z = nested.ungroup([part.astype(dtype) for part in parts], 1)  # [b, F]
    d_w_enc = nested.weight_gradient("bd,bf->df", x - params["b_dec"], d_z, dtype)  # [d, F]
    d_b_enc = d_z.sum(0, dtype=jnp.float32)  # [F]
    d_b_dec = cotangents[0].sum(0)  # [d]
    gradients = nested.parameter_gradients(params, d_w_enc, d_b_enc, nested.ungroup(d_w_dec, 0), d_b_dec)
    errors = jnp.stack([jnp.square(residual).sum() for residual in residuals])  # [G]
    return MainGradients(gradients, -residuals[-1], errors, f.sum(dtype=jnp.float32))


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

    def add_auxiliary(i: jax.Array, sums: tuple[Params, jax.Array]) -> tuple[Params, jax.Array]:
        # Bound to the loop's counter, or compilers take what does not change out of the loop, and compute it always.
        (*given, inputs, residual), _ = lax.optimization_barrier(((params, z, dead, x, main.residual), i))
        total = total_variance(residual) if variance is None else variance
        scale = jnp.where(total > 0, config.auxk_alpha / jnp.where(total > 0, tokens * total, 1.0), 0.0)

        def auxiliary(params: Params, z: jax.Array, dead: jax.Array) -> tuple[jax.Array, Params]:
            return _auxiliary(params, inputs, z, residual, dead, scale, config.dtype)

        one_device = config.mesh[1] == 1
        auxk, gradients = few_dead.of_dead(auxiliary, *given) if one_device else auxiliary(*given)
        return jax.tree.map(jnp.add, sums[0], gradients), auxk / config.auxk_alpha

    gradients, auxk = main.gradients, jnp.zeros((), jnp.float32)
    if config.auxk_alpha:
        # A loop that runs once or not at all adds in place, where a conditional would copy all gradients.
        gradients, auxk = lax.fori_loop(0, dead.any().astype(jnp.int32), add_auxiliary, (gradients, auxk))
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
    error = (
        mesh.place(contract("bf,fd->bd", kept, params["W_dec"], dtype), mesh.DATA, mesh.FEATURE) - residual
    )  # [b, d]
    cotangent = mesh.place((2.0 * scale * error).astype(dtype), mesh.DATA, None)  # [b, d]
    d_z = jnp.where(kept > 0, contract("bd,fd->bf", cotangent, params["W_dec"], dtype), 0.0)  # [b, F]
    d_w_enc = nested.weight_gradient("bd,bf->df", x - params["b_dec"], d_z, dtype)  # [d, F]
    d_w_dec = nested.weight_gradient("bf,bd->fd", kept, cotangent, dtype)  # [F, d]
    gradients = nested.parameter_gradients(params, d_w_enc, d_z.sum(0), d_w_dec, jnp.zeros_like(params["b_dec"]))
    return scale * jnp.square(error).sum(), gradients


def _row_threshold(candidates: jax.Array, count: jax.Array) -> jax.Array:
    """The value from which on each token's candidates `[b, F]` are kept; 0 where every positive one is. [b]

    No search is needed when no token has more than `count` positive candidates, as when few features are dead.
    """
    return lax.cond(
        (candidates > 0).sum(1).max() > count,
        lambda: kth_largest.row_threshold(candidates, count),
        lambda: jnp.zeros(candidates.shape[0], candidates.dtype),
    )

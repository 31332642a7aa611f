"""The main gradients from the kept entries alone, for one CPU: the sums of whole matrices without their zeros.

b: tokens, d: width of the activations, F: features, G: groups, E: slots for kept entries, k per token.
"""

import jax
import jax.numpy as jnp
import numpy as np

from sae.autoencoder import Params
from sae.kernels import kept_entries, nested
from sae.kernels.nested import MainGradients


def main_gradients(
    params: Params,
    x: jax.Array,
    z: jax.Array,
    keep: jax.Array,
    *,
    k: int,
    group_sizes: tuple[int, ...],
    group_weights: tuple[float, ...],
    l1: float,
    dtype: str,
) -> MainGradients:
    """The gradients of a whole batch; features are in order.

    Args:
      params: the autoencoder's arrays.
      x: normalised activations. [b, d]
      z: pre-activations after the ReLU. [b, F]
      keep: which of them are features, at most k per token on average. bool [b, F]
      k: mean number of features per token.
      group_sizes: features of each group.
      group_weights: weight of the error of each nested reconstruction.
      l1: weight of the L1 penalty.
      dtype: dtype of the factors of products.
    """
    tokens, groups = x.shape[0], len(group_sizes)
    size = min(k * tokens, z.size)

    def factor(array: jax.Array) -> jax.Array:
        return array.astype(dtype).astype(jnp.float32)

    by_token = kept_entries.entries(keep, size, group_sizes)
    f = jnp.where(by_token.used, z[by_token.rows, by_token.columns], 0.0)  # [E]
    w_dec = factor(params["W_dec"])  # [F, d]
    parts = kept_entries.product(factor(f), by_token.columns, by_token.starts, w_dec)  # [b * G, d]
    reconstructions = params["b_dec"] + jnp.cumsum(parts.reshape(tokens, groups, -1), 1)  # [b, G, d]
    residuals = reconstructions - x[:, None]  # [b, G, d]
    by_group = [residuals[:, group] for group in range(groups)]
    cotangents = jnp.stack(nested.group_cotangents(by_group, group_weights, tokens), 1)  # [b, G, d]

    by_feature = kept_entries.entries(keep, size, by_column=True)
    group_of = jnp.asarray(np.repeat(np.arange(groups, dtype=np.int32), group_sizes))  # [F]
    cotangent_of = by_feature.columns * groups + group_of[by_feature.rows]  # [E], rows of `flat`
    flat = factor(cotangents).reshape(tokens * groups, -1)  # [b * G, d]
    f = jnp.where(by_feature.used, z[by_feature.columns, by_feature.rows], 0.0)  # [E]
    d_w_dec = kept_entries.product(factor(f), cotangent_of, by_feature.starts, flat)  # [F, d]
    d_z = kept_entries.sampled_product(flat, w_dec, cotangent_of, by_feature.rows) + l1 / tokens  # [E]
    d_z = jnp.where(by_feature.used, d_z, 0.0)  # [E]
    centred = factor(x - params["b_dec"])  # [b, d]
    d_w_enc = kept_entries.product(factor(d_z), by_feature.columns, by_feature.starts, centred).T  # [d, F]
    ones = jnp.ones(tokens, jnp.float32)  # [b]
    d_b_enc = kept_entries.product(d_z, by_feature.columns, by_feature.starts, ones)  # [F]
    gradients = nested.parameter_gradients(params, d_w_enc, d_b_enc, d_w_dec, cotangents[:, 0].sum(0))
    return MainGradients(gradients, -residuals[:, -1], jnp.square(residuals).sum((0, 2)), f.sum())

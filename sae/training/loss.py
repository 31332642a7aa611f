"""The training loss, as its definition. `sae.training.gradients` computes the same and its gradients, faster.

B: tokens, d: width of the activations, F: features, in order.
"""

import jax
import jax.numpy as jnp
from jax import lax

from sae.autoencoder import Params, pre_activations
from sae.training.config import SaeConfig, TrainConfig


def loss(
    params: Params, x: jax.Array, keep: jax.Array, dead: jax.Array, sae: SaeConfig, config: TrainConfig
) -> jax.Array:
    """Squared errors of the nested reconstructions, the auxiliary loss of dead features, and the L1 penalty.

    Only tests call it: the step uses `sae.training.gradients`, which they compare with its derivatives.

    Args:
      params: the autoencoder's arrays.
      x: normalised activations. [B, d]
      keep: which pre-activations the variant selected as features. bool [B, F]
      dead: which features have not been selected for `config.dead_tokens` tokens. bool [F]
      sae: the autoencoder.
      config: the training.

    Returns:
      The loss. []
    """
    z = jax.nn.relu(pre_activations(params, x))  # [B, F]
    f = jnp.where(keep, z, 0.0)  # [B, F]
    main, end = jnp.float32(0.0), 0
    for size, weight in zip(sae.group_sizes, sae.group_weights, strict=True):  # nested dictionaries (Matryoshka)
        end += size
        reconstruction = f[:, :end] @ params["W_dec"][:end] + params["b_dec"]  # [B, d]
        main += weight * jnp.square(x - reconstruction).sum(1).mean()
    residual = lax.stop_gradient(x - reconstruction)  # [B, d]
    auxk = auxiliary_loss(params, z, residual, dead)
    return weighted_sum(main, auxk, f.sum(1).mean(), sae, config)


def weighted_sum(main: jax.Array, auxk: jax.Array, l1: jax.Array, sae: SaeConfig, config: TrainConfig) -> jax.Array:
    """The loss from its terms.

    Args:
      main: squared errors of the nested reconstructions, weighted and summed. []
      auxk: the auxiliary loss of dead features. []
      l1: the mean over the tokens of a token's summed features. []
      sae: the autoencoder, whose `l1` is a weight.
      config: the training, whose `auxk_alpha` is a weight.
    """
    return main + config.auxk_alpha * auxk + sae.l1 * l1


def auxiliary_loss(params: Params, z: jax.Array, residual: jax.Array, dead: jax.Array) -> jax.Array:
    """The share of the residual's variance that the strongest dead features of each token leave unexplained.

    The min(d / 2, dead features) largest dead pre-activations of each token reconstruct the residual, without a bias.
    After Gao et al., "Scaling and evaluating sparse autoencoders" (2024).

    Args:
      params: the autoencoder's arrays.
      z: pre-activations after the ReLU. [B, F]
      residual: what the whole reconstruction leaves over. [B, d]
      dead: the dead features. bool [F]

    Returns:
      The loss, 0 if no feature is dead or nothing is left over. []
    """
    count = jnp.clip(dead.sum(), 1, residual.shape[1] // 2)
    candidates = jnp.where(dead, z, 0.0)  # [B, F]
    threshold = jnp.take(jnp.sort(candidates, axis=1), len(dead) - count, axis=1)  # [B]
    kept = jnp.where(candidates >= threshold[:, None], candidates, 0.0)  # [B, F]
    error = jnp.square(residual - kept @ params["W_dec"]).sum(1).mean()
    variance = total_variance(residual)
    defined = dead.any() & (variance > 0)
    return jnp.where(defined, error / jnp.where(defined, variance, 1.0), 0.0)


def total_variance(x: jax.Array) -> jax.Array:
    """Squared distance of `x [B, d]` from its mean over the tokens, summed over d and averaged over the tokens. []"""
    return jnp.square(x - x.mean(0)).sum(1).mean()

"""The optimiser: Adam with clipped gradients on a unit-norm decoder, and the schedule of its learning rate."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from sae.autoencoder import Params, unit_rows
from sae.training.config import TrainConfig

_CLIP_NORM = 1.0


def init(params: Params) -> Any:
    """The state of optax's Adam before the first step; its moments are dicts like `params`."""
    return optax.scale_by_adam().init(params)


def update(
    params: Params, gradients: Params, adam: Any, step: jax.Array, config: TrainConfig
) -> tuple[Params, Any, dict[str, jax.Array]]:
    """One update of the parameters.

    Args:
      params: the autoencoder's arrays.
      gradients: the gradients of the loss.
      adam: the state of optax's Adam.
      step: number of steps taken. int32 []
      config: the training.

    Returns:
      The parameters, Adam's state, and the metrics `lr` and `gradient_norm` (before the clipping).
    """
    gradients = gradients | {"W_dec": _without_parallel_part(gradients["W_dec"], params["W_dec"])}
    gradients, norm = _clip(gradients)
    direction, adam = optax.scale_by_adam(b1=config.beta1, b2=config.beta2, eps=1e-8).update(gradients, adam)
    rate = learning_rate(step, config)
    params = jax.tree.map(lambda p, u: p - rate * u, params, direction)
    return params | {"W_dec": unit_rows(params["W_dec"])}, adam, {"lr": rate, "gradient_norm": norm}


def learning_rate(step: jax.Array, config: TrainConfig) -> jax.Array:
    """Linear warmup from 0, constant, and linear to 0 from `decay_start` on. []"""
    # optax.join_schedules of the same pieces differs in the last bits from dictionary_learning's schedule.
    scale = jnp.ones((), jnp.float32)
    if config.decay_start < config.steps:
        remaining = (config.steps - step) / (config.steps - config.decay_start)
        scale = jnp.where(step >= config.decay_start, remaining, scale)
    if config.warmup_steps:
        scale = jnp.where(step < config.warmup_steps, step / config.warmup_steps, scale)
    return config.lr * scale


def _without_parallel_part(gradient: jax.Array, w_dec: jax.Array) -> jax.Array:
    """Removes from each row of the decoder's gradient `[F, d]` its component along the decoder's row."""
    directions = w_dec / (jnp.linalg.norm(w_dec, axis=1, keepdims=True) + 1e-6)  # [F, d]
    return gradient - (gradient * directions).sum(1, keepdims=True) * directions  # [F, d]


def _clip(gradients: Params) -> tuple[Params, jax.Array]:
    """Scales all gradients together to a norm of at most 1; also gives their norm before."""
    # Not optax.clip_by_global_norm: torch's clip_grad_norm_, and so dictionary_learning, divides by norm + 1e-6.
    norm = optax.global_norm(gradients)
    scale = jnp.minimum(1.0, _CLIP_NORM / (norm + 1e-6))
    return jax.tree.map(lambda g: g * scale, gradients), norm

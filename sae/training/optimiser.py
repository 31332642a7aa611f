"""The optimiser: Adam with clipped gradients on a unit-norm decoder, and the schedule of its learning rate."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from sae.autoencoder import Params, row_norms
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
    parallel, square = _parallel_part(gradients["W_dec"], params["W_dec"])  # [F], []
    others = (jnp.square(gradient).sum() for name, gradient in gradients.items() if name != "W_dec")
    norm = jnp.sqrt(sum(others, start=square))
    # Not optax.clip_by_global_norm: torch's clip_grad_norm_, and so dictionary_learning, divides by norm + 1e-6.
    scale = jnp.minimum(1.0, _CLIP_NORM / (norm + 1e-6))
    gradients = gradients | {"W_dec": gradients["W_dec"] - parallel[:, None] * params["W_dec"]}
    clipped = jax.tree.map(lambda gradient: gradient * scale, gradients)
    direction, adam = optax.scale_by_adam(b1=config.beta1, b2=config.beta2, eps=1e-8).update(clipped, adam)
    rate = learning_rate(step, config)
    params = jax.tree.map(lambda p, u: p - rate * u, params, direction)
    lengths = row_norms(params["W_dec"])  # [F, 1]
    # Held apart, or compilers take the whole update twice: for the lengths and for the rows that they divide.
    w_dec = lax.optimization_barrier(params["W_dec"]) / lengths  # [F, d]
    return params | {"W_dec": w_dec}, adam, {"lr": rate, "gradient_norm": norm}


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


def _parallel_part(gradient: jax.Array, w_dec: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The component of each row of the decoder's gradient along the decoder's row, and the square of the rest.

    Both come from sums over rows that are taken while the two matrices are read once.

    Args:
      gradient: of the decoder. [F, d]
      w_dec: decoder, whose rows have norm 1, as every update leaves them. [F, d]

    Returns:
      What to multiply each row of the decoder by, to subtract it from the gradient. [F]
      The summed square of the gradient after that. []
    """
    along = (gradient * w_dec).sum(1)  # [F]
    factor = along / (1.0 + 1e-6) ** 2  # [F]
    squares = jnp.square(gradient).sum(1) - factor * (2.0 * along - factor)  # [F]
    return factor, jnp.maximum(squares, 0.0).sum()

"""First phase: the vision tower learns to tell what is in a picture (MAIRA-2's, Rad-DINO, is pretrained too).

A linear layer on the mean of the patch features predicts each label; it is thrown away afterwards.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from maira_jax.model import vision
from maira_jax.model.config import VisionConfig
from maira_jax.model.layers import Params


def init(cfg: VisionConfig, n_labels: int, key: jax.Array) -> Params:
    """`tower`: the vision tower; `head`: kernel [d_vision, labels] and bias [labels]."""
    head = {"kernel": jnp.zeros((cfg.hidden_size, n_labels)), "bias": jnp.zeros((n_labels,))}
    return {"tower": vision.init(cfg, key), "head": head}


def predict(params: Params, cfg: VisionConfig, pixels: jax.Array) -> jax.Array:
    """Logits of the labels. pixels: [batch, size, size, 3] -> [batch, labels]."""
    x, _ = vision.forward(params["tower"], cfg, pixels, ())
    pooled = vision.output(params["tower"], cfg, x)[:, 1:].mean(axis=1)
    return pooled @ params["head"]["kernel"] + params["head"]["bias"]


def loss(params: Params, cfg: VisionConfig, pixels: jax.Array, labels: jax.Array, known: jax.Array) -> jax.Array:
    """Mean binary cross-entropy over the known labels.

    Args:
      labels, known: bool [batch, labels].
    """
    losses = optax.sigmoid_binary_cross_entropy(predict(params, cfg, pixels), labels.astype(jnp.float32))
    return jnp.sum(losses * known) / jnp.maximum(jnp.sum(known), 1)


@functools.partial(jax.jit, static_argnames=("cfg", "optimiser"), donate_argnames=("params", "state"))
def step(
    params: Params,
    state: Any,
    pixels: jax.Array,
    labels: jax.Array,
    known: jax.Array,
    *,
    cfg: VisionConfig,
    optimiser: optax.GradientTransformation,
) -> tuple[Params, Any, jax.Array]:
    """One update of the tower and its head; returns the loss before it."""
    value, gradient = jax.value_and_grad(loss)(params, cfg, pixels, labels, known)
    update, state = optimiser.update(gradient, state, params)
    return optax.apply_updates(params, update), state, value

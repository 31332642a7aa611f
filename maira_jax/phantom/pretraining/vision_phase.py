"""The vision phase: vision tower and projector learn to predict labels from images (MAIRA-2's tower is pretrained too).

Each label has a fixed direction in the space of the projected patches, orthogonal to the others; every patch learns to
predict along it whether the whole image has the label. Each image token of the language model then encodes all labels
at the same scale. With a learned linear read-out instead, small findings are encoded too weakly to be used later.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from maira_jax.errors import UserError
from maira_jax.model import layers, maira2, projector, vision
from maira_jax.model.config import Maira2Config
from maira_jax.model.layers import Params


def init(cfg: Maira2Config, key: jax.Array) -> Params:
    """Initial parameters of the model's `vision` and `projector` parts."""
    tower_key, projector_key = jax.random.split(key)
    return {
        "vision": layers.init(vision.VisionTower, cfg.vision, tower_key),
        "projector": layers.init(projector.Projector, cfg, projector_key),
    }


def directions(cfg: Maira2Config, n_labels: int, key: jax.Array) -> jax.Array:
    """One orthonormal direction per label, float32 [d_model, labels].

    Raises:
      UserError: there are more labels than dimensions.
    """
    if n_labels > cfg.text.hidden_size:
        raise UserError(
            f"the recipe's language model has a width of {cfg.text.hidden_size}, fewer than the {n_labels} labels: "
            "raise the width"
        )
    return jax.random.orthogonal(key, cfg.text.hidden_size)[:, :n_labels]


def predict(params: Params, cfg: Maira2Config, label_directions: jax.Array, pixels: jax.Array) -> jax.Array:
    """Logits of every label at every patch.

    Args:
      params, cfg: vision tower and projector.
      label_directions: float32 [d_model, labels], see `directions`.
      pixels: float32 [batch, size, size, 3].

    Returns:
      float32 [batch, patches, labels].
    """
    features, _ = maira2.encode_images(params, cfg, pixels[:, None])
    assert features is not None
    return features @ label_directions


def loss(
    params: Params,
    cfg: Maira2Config,
    label_directions: jax.Array,
    pixels: jax.Array,
    labels: jax.Array,
    known: jax.Array,
) -> jax.Array:
    """Mean binary cross-entropy over the known labels and the patches.

    Args:
      params, cfg: vision tower and projector.
      label_directions: float32 [d_model, labels], see `directions`.
      pixels: float32 [batch, size, size, 3].
      labels: bool [batch, labels].
      known: bool [batch, labels], False for labels that do not count.
    """
    targets = labels[:, None].astype(jnp.float32)  # [batch, 1, labels]
    losses = optax.sigmoid_binary_cross_entropy(predict(params, cfg, label_directions, pixels), targets).mean(axis=1)
    return jnp.sum(losses * known) / jnp.maximum(jnp.sum(known), 1)


@functools.partial(jax.jit, static_argnames=("cfg", "optimiser"), donate_argnames=("params", "state"))
def step(
    params: Params,
    state: Any,
    label_directions: jax.Array,
    pixels: jax.Array,
    labels: jax.Array,
    known: jax.Array,
    *,
    cfg: Maira2Config,
    optimiser: optax.GradientTransformation,
) -> tuple[Params, Any, jax.Array]:
    """One update of tower and projector; also returns the loss before it."""
    value, gradient = jax.value_and_grad(loss)(params, cfg, label_directions, pixels, labels, known)
    update, state = optimiser.update(gradient, state, params)
    return optax.apply_updates(params, update), state, value

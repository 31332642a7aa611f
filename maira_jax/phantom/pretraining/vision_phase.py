"""The vision phase: vision tower and projector learn to predict labels from images (MAIRA-2's tower is pretrained too).

Each label has a fixed direction in the space of the projected patches, orthogonal to the others; every patch learns to
predict along it whether the whole image has the label. Each image token of the language model then encodes all labels
at the same scale. With a learned linear read-out instead, small findings are encoded too weakly to be used later.

Where the chest lies in the image is encoded in the same way, as numbers: boxes need it to a fraction of a patch, which
no label does.
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


_POSITION_SCALE = 2.0  # of a hundredth of the image side, along its direction: about as much as labels differ
_POSITION_WEIGHT = 0.1  # of the squared error of positions, in hundredths of the image side


def directions(cfg: Maira2Config, n_targets: int, key: jax.Array) -> jax.Array:
    """One orthonormal direction per label or position, float32 [d_model, targets].

    Raises:
      UserError: there are more of them than dimensions.
    """
    if n_targets > cfg.text.hidden_size:
        raise UserError(
            f"the recipe's language model has a width of {cfg.text.hidden_size}, fewer than the {n_targets} labels and "
            "positions: raise the width"
        )
    return jax.random.orthogonal(key, cfg.text.hidden_size)[:, :n_targets]


def predict(
    params: Params, cfg: Maira2Config, target_directions: jax.Array, pixels: jax.Array, n_labels: int
) -> tuple[jax.Array, jax.Array]:
    """Logits of every label and the positions, at every patch.

    Args:
      params, cfg: vision tower and projector.
      target_directions: float32 [d_model, labels + positions], see `directions`.
      pixels: float32 [batch, size, size, 3].
      n_labels: number of labels.

    Returns:
      Logits, float32 [batch, patches, labels], and positions in hundredths of the image side, float32
      [batch, patches, positions].
    """
    features, _ = maira2.encode_images(params, cfg, pixels[:, None])
    assert features is not None
    along = features @ target_directions  # [batch, patches, labels + positions]
    return along[..., :n_labels], along[..., n_labels:] / _POSITION_SCALE


def loss(
    params: Params,
    cfg: Maira2Config,
    target_directions: jax.Array,
    pixels: jax.Array,
    labels: jax.Array,
    known: jax.Array,
    positions: jax.Array,
) -> jax.Array:
    """Mean binary cross-entropy over the known labels and the patches, and the positions' mean squared error.

    Args:
      params, cfg: vision tower and projector.
      target_directions: float32 [d_model, labels + positions], see `directions`.
      pixels: float32 [batch, size, size, 3].
      labels: bool [batch, labels].
      known: bool [batch, labels], False for labels that do not count.
      positions: float32 [batch, positions], in hundredths of the image side.
    """
    logits, found = predict(params, cfg, target_directions, pixels, labels.shape[1])
    targets = labels[:, None].astype(jnp.float32)  # [batch, 1, labels]
    losses = optax.sigmoid_binary_cross_entropy(logits, targets).mean(axis=1)  # [batch, labels]
    label_loss = jnp.sum(losses * known) / jnp.maximum(jnp.sum(known), 1)
    if not positions.shape[1]:
        return label_loss
    return label_loss + _POSITION_WEIGHT * jnp.mean(jnp.square(found - positions[:, None]))


@functools.partial(jax.jit, static_argnames=("cfg", "optimiser"), donate_argnames=("params", "state"))
def step(
    params: Params,
    state: Any,
    target_directions: jax.Array,
    pixels: jax.Array,
    labels: jax.Array,
    known: jax.Array,
    positions: jax.Array,
    *,
    cfg: Maira2Config,
    optimiser: optax.GradientTransformation,
) -> tuple[Params, Any, jax.Array]:
    """One update of tower and projector; also returns the loss before it."""
    value, gradient = jax.value_and_grad(loss)(params, cfg, target_directions, pixels, labels, known, positions)
    update, state = optimiser.update(gradient, state, params)
    return optax.apply_updates(params, update), state, value

"""First phase: vision tower and projector learn to tell what is in a picture (MAIRA-2's tower is pretrained too).

Each label has a direction of its own among the projected patches, fixed and orthogonal to the others, and every
patch learns to say along it whether the whole picture has the label. So each image token that the language model
will see holds all labels equally loud; with a learned read-out, faint signs are encoded too faintly to be picked up.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from maira_jax.errors import UserError
from maira_jax.model import maira2, projector, vision
from maira_jax.model.config import Maira2Config
from maira_jax.model.layers import Params


def init(cfg: Maira2Config, key: jax.Array) -> Params:
    """`vision` and `projector`, as in the model."""
    tower_key, projector_key = jax.random.split(key)
    return {"vision": vision.init(cfg.vision, tower_key), "projector": projector.init(cfg, projector_key)}


def directions(cfg: Maira2Config, n_labels: int, key: jax.Array) -> jax.Array:
    """An orthonormal direction a label, [d_model, labels].

    Raises:
      UserError: there are more labels than dimensions.
    """
    if n_labels > cfg.text.hidden_size:
        raise UserError(f"pretrain.text.width is {cfg.text.hidden_size}, fewer than the {n_labels} labels: raise it")
    return jax.random.orthogonal(key, cfg.text.hidden_size)[:, :n_labels]


def predict(params: Params, cfg: Maira2Config, along: jax.Array, pixels: jax.Array) -> jax.Array:
    """Each patch's logits of the labels. pixels: [batch, size, size, 3] -> [batch, patches, labels]."""
    features, _ = maira2.see(params, cfg, pixels[:, None])
    assert features is not None
    return features @ along


def loss(
    params: Params, cfg: Maira2Config, along: jax.Array, pixels: jax.Array, labels: jax.Array, known: jax.Array
) -> jax.Array:
    """Mean binary cross-entropy over the known labels and the patches.

    Args:
      along: [d_model, labels], see `directions`.
      labels, known: bool [batch, labels].
    """
    targets = labels[:, None].astype(jnp.float32)
    losses = optax.sigmoid_binary_cross_entropy(predict(params, cfg, along, pixels), targets).mean(axis=1)
    return jnp.sum(losses * known) / jnp.maximum(jnp.sum(known), 1)


@functools.partial(jax.jit, static_argnames=("cfg", "optimiser"), donate_argnames=("params", "state"))
def step(
    params: Params,
    state: Any,
    along: jax.Array,
    pixels: jax.Array,
    labels: jax.Array,
    known: jax.Array,
    *,
    cfg: Maira2Config,
    optimiser: optax.GradientTransformation,
) -> tuple[Params, Any, jax.Array]:
    """One update of tower and projector; returns the loss before it."""
    value, gradient = jax.value_and_grad(loss)(params, cfg, along, pixels, labels, known)
    update, state = optimiser.update(gradient, state, params)
    return optax.apply_updates(params, update), state, value

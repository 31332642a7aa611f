"""The report phases: the model learns to write the findings of a study."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from maira_jax.model import language, maira2
from maira_jax.model.config import Maira2Config
from maira_jax.model.layers import Params
from maira_jax.model.sites import Site


@struct.dataclass
class ReportBatch:
    """Teacher-forced studies, padded on the right.

    Attributes:
      tokens: int32 [batch, positions].
      mask: bool [batch, positions], False on padding.
      target: bool [batch, positions], True for the tokens that the model should predict.
      pixels: float32 [batch, images, size, size, 3], or None without images.
    """

    tokens: jax.Array
    mask: jax.Array
    target: jax.Array
    pixels: jax.Array | None


def loss(params: Params, cfg: Maira2Config, batch: ReportBatch, n_tail: int) -> tuple[jax.Array, jax.Array]:
    """Summed cross-entropy of the target tokens in nats, and their number.

    Args:
      params, cfg: the model.
      batch: studies with their reports.
      n_tail: logits are computed for the last `n_tail` tokens of each row alone, among which all targets are.
    """
    n_tail = min(n_tail, batch.tokens.shape[1] - 1)
    last = Site.last(cfg)
    out = maira2.forward(params, cfg, batch.tokens, batch.mask, batch.pixels, read=(last,), logits=False)
    at = maira2.last_positions(batch.mask, n_tail)  # [batch, n_tail]
    x = maira2.at_positions(out.sites[last.name], jnp.maximum(at - 1, 0))  # [batch, n_tail, d_model]
    logits = language.logits(params["language"], cfg.text, x)  # [batch, n_tail, vocabulary]
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.take_along_axis(batch.tokens, at, axis=1))
    target = jnp.take_along_axis(batch.target, at, axis=1)  # [batch, n_tail]
    return jnp.sum(losses * target), jnp.sum(target)


@functools.partial(jax.jit, static_argnames=("cfg", "n_tail"))
def _gradient(
    params: Params, frozen: Params, batch: ReportBatch, *, cfg: Maira2Config, n_tail: int
) -> tuple[tuple[jax.Array, jax.Array], Params]:
    """Loss and number of its tokens as `loss`, and the gradient of the loss."""
    return jax.value_and_grad(lambda params: loss(params | frozen, cfg, batch, n_tail), has_aux=True)(params)


@functools.partial(jax.jit, static_argnames=("optimiser",), donate_argnames=("params", "state"))
def _update(
    params: Params, state: Any, gradients: list[Params], count: jax.Array, *, optimiser: optax.GradientTransformation
) -> tuple[Params, Any]:
    gradient = jax.tree.map(lambda *leaves: sum(leaves) / count, *gradients)
    update, state = optimiser.update(gradient, state, params)
    return optax.apply_updates(params, update), state


def step(
    params: Params,
    state: Any,
    frozen: Params,
    batches: Sequence[ReportBatch],
    *,
    cfg: Maira2Config,
    optimiser: optax.GradientTransformation,
    n_tails: Sequence[int],
) -> tuple[Params, Any, jax.Array]:
    """One update of `params`, which are a model together with `frozen`; also returns the mean loss before it.

    Each batch is a program of its own, so that batches of all lengths go together without one program for every
    combination; the mean is over the target tokens of all.
    """
    found = [
        _gradient(params, frozen, batch, cfg=cfg, n_tail=n_tail) for batch, n_tail in zip(batches, n_tails, strict=True)
    ]
    total = sum(value for (value, _), _ in found)
    count = sum(number for (_, number), _ in found)
    params, state = _update(params, state, [gradient for _, gradient in found], count, optimiser=optimiser)
    return params, state, total / count


evaluate = jax.jit(loss, static_argnames=("cfg", "n_tail"))

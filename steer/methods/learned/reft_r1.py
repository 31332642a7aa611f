"""ReFT-r1: a direction of length 1 that is learned, and added as strongly as the residual stream has it already.

At each edited token, h becomes h + m v, where m is the mean of the k largest ReLU(h . v) of the study's edited tokens.
The direction v is learned so that the edited model writes a report that states the concept, with an L1 penalty on the
other ReLU(h . v) whose weight grows from 0. A sweep adds v; a strength of 1 is the largest ReLU(h . v) of the training
studies. Source: AxBench (Wu et al., arXiv 2501.17148), whose training texts state the concept; here they are the
reports of training studies, rewritten (`rewriting`).
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from steer.methods.intervention import Intervention
from steer.methods.learned.rewriting import LearnedEdit, Rewriting, RewrittenBatch
from steer.methods.method import METHODS, MethodInputs, SteeringMethod
from steer.selection.target import Target

_TOP = 8  # latents whose mean is the strength
_PENALTY = 0.005  # of the other latents, at the last step
_STARTS, _STEPS, _RATE, _WEIGHT_DECAY = 3, 120, 1e-2, 1e-2
_OPTIMISER = optax.adamw(optax.linear_schedule(_RATE, 0.0, _STEPS), weight_decay=_WEIGHT_DECAY)


class RankOneEdit(LearnedEdit):
    """h + m v, see the module. learned: float32 [d_model], v."""

    def latent(self, x: jax.Array) -> jax.Array:
        """ReLU(h . v), [B, T], of x [B, T, d_model]."""
        return jax.nn.relu(jnp.einsum("btd,d->bt", x, self.learned, precision=jax.lax.Precision.HIGHEST))

    def apply(self, x: jax.Array, edited: jax.Array) -> tuple[jax.Array, jax.Array]:
        """See `LearnedEdit`; the penalty is the mean of the latents that are not among the k largest."""
        latent = jnp.where(edited, self.latent(x), 0)  # [B, T]
        top = jax.lax.top_k(latent, min(_TOP, latent.shape[1]))[0]  # [B, k]
        rest = (latent.sum(axis=1) - top.sum(axis=1)) / jnp.maximum(edited.sum(axis=1), 1)  # [B]
        added = top.mean(axis=1)[:, None, None] * self.learned  # [B, 1, d_model]
        return x + jnp.where(edited[..., None], added, 0), rest.mean()


@jax.jit
def update(v: jax.Array, gradient: jax.Array, state: optax.OptState) -> tuple[jax.Array, optax.OptState]:
    """A step of AdamW from the direction at length 1, along the gradient without its part parallel to it, [d_model]."""
    unit = v / jnp.linalg.norm(v)  # [d_model]
    change, state = _OPTIMISER.update(gradient - (gradient @ unit) * unit, state, unit)
    return unit + change, state


def learn_direction(rewriting: Rewriting, batches: Sequence[RewrittenBatch], d_model: int, seed: int) -> RankOneEdit:
    """The direction, of length 1: of those learned from a few beginnings the one under which most studies flip.

    From some beginnings all latents become 0, and the gradient with them.
    """
    best, flipped = None, -1.0
    for start in range(_STARTS):
        edit = _learned(rewriting, batches, d_model, (seed, start))
        share = rewriting.flipped(edit, batches)
        if best is None or share > flipped:
            best, flipped = edit, share
        if flipped == 1:
            break
    assert best is not None
    return best


def _learned(
    rewriting: Rewriting, batches: Sequence[RewrittenBatch], d_model: int, seed: tuple[int, int]
) -> RankOneEdit:
    """The direction that is learned from a random one on the side where the residual stream is."""
    drawn = jnp.asarray(np.random.default_rng(seed).standard_normal(d_model), jnp.float32)
    edits = [RankOneEdit(sign * drawn / jnp.linalg.norm(drawn)) for sign in (1, -1)]
    edit = max(edits, key=lambda edit: rewriting.largest(edit.latent, batches))
    state = _OPTIMISER.init(edit.learned)
    for step in range(_STEPS):
        batch = batches[step % len(batches)]
        v, state = update(edit.learned, rewriting.gradient(edit, [batch], _PENALTY * step / _STEPS), state)
        edit = RankOneEdit(v)
    return RankOneEdit(edit.learned / jnp.linalg.norm(edit.learned))


@METHODS.register("reft_r1")
class ReftR1(SteeringMethod):
    """Adds the learned direction; what is learned to remove a concept is subtracted at a strength below 0."""

    of_concept = True
    learned = True

    def intervention(self, target: Target, inputs: MethodInputs) -> Intervention | None:
        assert inputs.rewriting is not None
        rehearsed = {"direction": inputs.decoder_row(target.feature).tolist(), "largest": 0.0}
        found = inputs.rewriting.kept.get("reft_r1", target.concept, lambda: self._learn(target, inputs), rehearsed)
        if found is None:
            return None
        return Intervention.adding(np.array(found["direction"], np.float32), inputs.unit_size(found["largest"]))

    def _learn(self, target: Target, inputs: MethodInputs) -> dict[str, Any] | None:
        """The direction towards the concept, and the largest ReLU(h . v); None where nothing can be learned."""
        rewriting = inputs.rewriting
        assert rewriting is not None
        for present in (True, False):
            batches = rewriting.batches(target.concept, present=present)
            if batches:
                edit = learn_direction(rewriting, batches, inputs.sae.d_model, inputs.seed)
                direction = np.asarray(edit.learned) * (1 if present else -1)
                return {"direction": direction.tolist(), "largest": rewriting.largest(edit.latent, batches)}
        return None

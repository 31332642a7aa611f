"""The smallest set of features that flips a concept: what in the autoencoder carries it.

A change of every feature is learned through the model, under an L1 penalty that falls step by step until the edited
model finds the rewritten reports (`rewriting`) of held-out training studies likelier than their own. The features that
have changed by then are set to values, which are learned without a penalty; those that can be spared are left out, the
least changed ones first. One set adds the concept, another one removes it.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

from sae.autoencoder import Params, Sae, encode
from steer.methods.class_means import StudyFeatures
from steer.methods.intervention import FeatureClamp, Intervention
from steer.methods.learned.rewriting import LearnedEdit, Rewriting, RewrittenBatch
from steer.methods.method import METHODS, MethodInputs, SteeringMethod
from steer.methods.study_means import class_masks
from steer.selection.target import Target

_WEIGHTS = 8  # of the penalty, each half of the one before; at the first one half of the strongest gradient is above
_PENALISED_STEPS, _FREE_STEPS = 20, 15  # of Adam, for each weight
_RATE = 0.05  # in units of a feature's range
_ENOUGH = 0.8  # of the studies, that must flip
_MAX_VALUE = 2.0  # in units of a feature's range
_ADAM = optax.adam(_RATE)


class FeatureRange(NamedTuple):
    """What features are in training studies, on the edited tokens: float64 [F] each.

    scale: the largest mean over a study's tokens; 0 where a feature is never active there. start: the mean in the
    studies that are to be changed, in units of the scale.
    """

    scale: np.ndarray
    start: np.ndarray


class AddedChanges(LearnedEdit):
    """Features that are changed by amounts. learned: float32 [F]. rows: float32 [F, d_model], each feature's decoder
    row times its scale."""

    rows: jax.Array

    def apply(self, x: jax.Array, edited: jax.Array) -> tuple[jax.Array, jax.Array]:
        """See `LearnedEdit`; the penalty, whose gradient has corners, is left to the descent."""
        added = jnp.einsum("f,fd->d", self.learned, self.rows, precision=jax.lax.Precision.HIGHEST)  # [d_model]
        return x + jnp.where(edited[..., None], added, 0), jnp.float32(0)


class SetFeatures(LearnedEdit):
    """Features that are set, as `FeatureClamp` does. learned: float32 [F], in units of the scale. chosen: bool [F].
    scale: float32 [F]. sae, threshold, top_k: the autoencoder."""

    chosen: jax.Array
    scale: jax.Array
    sae: Params
    threshold: jax.Array
    top_k: int | None = struct.field(pytree_node=False)

    def apply(self, x: jax.Array, edited: jax.Array) -> tuple[jax.Array, jax.Array]:
        """See `LearnedEdit`."""
        kept = encode(self.sae, x, self.threshold, self.top_k)  # [B, T, F]
        change = jnp.where(self.chosen & edited[..., None], self.learned * self.scale - kept, 0)  # [B, T, F]
        added = jnp.einsum("btf,fd->btd", change, self.sae["W_dec"], precision=jax.lax.Precision.HIGHEST)
        return x + added, jnp.float32(0)


def smallest_set(
    rewriting: Rewriting, batches: Sequence[RewrittenBatch], sae: Sae, found: FeatureRange
) -> dict[int, float]:
    """The features of the smallest set, each with the value that it is set to, the most changed ones first.

    Half of the batches are learned from; on the others a set is tested.
    """
    learn, test = (batches[::2], batches[1::2]) if len(batches) > 1 else (batches, batches)
    low, high = -found.start, np.where(found.scale > 0, _MAX_VALUE - found.start, 0.0)  # [F] each
    rows = np.asarray(sae.params["W_dec"]) * found.scale[:, None]
    changes = AddedChanges(jnp.zeros(sae.n_features, jnp.float32), jnp.asarray(rows, jnp.float32))
    weight = 2.0 * float(jnp.abs(rewriting.gradient(changes, learn)).max())
    best, flipped = _set_of(changes, sae, found), -1.0
    state = _ADAM.init(changes.learned)
    for _ in range(_WEIGHTS):
        weight /= 2
        for _ in range(_PENALISED_STEPS):
            gradient = rewriting.gradient(changes, learn)
            amount, state = penalised_step(changes.learned, gradient, state, weight, low, high)
            changes = changes.replace(learned=amount)
        if not np.asarray(changes.learned).any():
            continue
        features = _with_free_values(rewriting, _set_of(changes, sae, found), learn)
        share = rewriting.flipped(features, test)
        if share > flipped:
            best, flipped = features, share
        if share >= _ENOUGH:
            break
    return _spared(rewriting, best, test, found, min(flipped, _ENOUGH))


def penalised_step(
    amount: jax.Array, gradient: jax.Array, state: optax.OptState, weight: float, low: np.ndarray, high: np.ndarray
) -> tuple[jax.Array, optax.OptState]:
    """A step of Adam on a loss plus `weight` times the sum of absolute amounts, float32 [F], within bounds.

    An amount leaves 0 only where the loss falls faster than the penalty rises, and stops at 0 where it would cross it.
    """
    away = jnp.sign(gradient) * jnp.maximum(jnp.abs(gradient) - weight, 0)  # [F]
    slope = jnp.where(amount == 0, away, gradient + weight * jnp.sign(amount))  # [F]
    change, state = _ADAM.update(slope, state)
    change = jnp.where((amount == 0) & (away == 0), 0, change)  # what Adam remembers moves nothing that is to rest
    moved = amount + change
    return jnp.clip(jnp.where(amount * moved < 0, 0, moved), jnp.asarray(low), jnp.asarray(high)), state


def _set_of(changes: AddedChanges, sae: Sae, found: FeatureRange) -> SetFeatures:
    """The changed features, set to what the change makes of their mean."""
    return SetFeatures(
        jnp.asarray(found.start, jnp.float32) + changes.learned,
        changes.learned != 0,
        jnp.asarray(found.scale, jnp.float32),
        {name: jnp.asarray(array) for name, array in sae.params.items()},
        jnp.asarray(sae.threshold, jnp.float32),
        sae.top_k,
    )


def _with_free_values(rewriting: Rewriting, features: SetFeatures, batches: Sequence[RewrittenBatch]) -> SetFeatures:
    state = _ADAM.init(features.learned)
    for _ in range(_FREE_STEPS):
        change, state = _ADAM.update(rewriting.gradient(features, batches), state)
        value = jnp.clip(features.learned + jnp.where(features.chosen, change, 0), 0, _MAX_VALUE)
        features = features.replace(learned=value)
    return features


def _spared(
    rewriting: Rewriting, features: SetFeatures, batches: Sequence[RewrittenBatch], found: FeatureRange, enough: float
) -> dict[int, float]:
    """The set without the features that can be spared, see the module."""
    change = np.abs(np.asarray(features.learned) - found.start)  # [F]
    order = sorted(np.flatnonzero(np.asarray(features.chosen)).tolist(), key=lambda number: change[number])
    for number in order[:-1]:
        without = features.replace(chosen=features.chosen.at[number].set(False))
        if rewriting.flipped(without, batches) >= enough:
            features = without
    values = np.asarray(features.learned) * found.scale
    return {number: float(values[number]) for number in reversed(order) if features.chosen[number]}


@METHODS.register("smallest_set")
class SmallestSet(SteeringMethod):
    """Sets the features of the smallest set that adds the concept, or of the one that removes it."""

    statistics = (StudyFeatures,)
    strengths = (-1.0, 1.0)
    of_concept = True
    learned = True

    def intervention(self, target: Target, inputs: MethodInputs) -> Intervention | None:
        assert inputs.rewriting is not None
        sets = inputs.rewriting.kept.get(
            "smallest_set",
            target.concept,
            lambda: [list(self._set(target, inputs, present).items()) for present in (True, False)],
            [[[target.feature, 0.0]], [[target.feature, 0.0]]],
        )
        if not any(sets):
            return None
        added, removed = map(dict, sets)
        negative = {feature: -value for feature, value in removed.items()}  # becomes the value at a strength of -1
        return Intervention.setting(
            FeatureClamp.of_features(inputs.sae, added),
            inputs.unit_size(target.max_activation),
            FeatureClamp.of_features(inputs.sae, negative),
        )

    def _set(self, target: Target, inputs: MethodInputs, present: bool) -> Mapping[int, float]:
        """The features that make the concept present, or absent; none where nothing can be learned."""
        found = inputs.statistic(StudyFeatures)
        assert inputs.rewriting is not None
        batches = inputs.rewriting.batches(target.concept, present=present)
        has, lacks = class_masks(found.labels, target.concept)
        group = lacks if present else has
        if not batches or not group.any():
            return {}
        scale = found.activity.max(axis=0).astype(np.float64)  # [F]
        start = np.divide(found.activity[group].mean(axis=0), scale, out=np.zeros_like(scale), where=scale > 0)
        return smallest_set(inputs.rewriting, batches, inputs.sae, FeatureRange(scale, start))

"""Controls as dense as features, written as autoencoders, so that they are explained and scored as features are.

No control has a natural zero, so all are active by rank: above the quantile of their values that makes each one as
dense as a feature of the autoencoder, drawn at random, because what is rare is easier or harder to explain.
"""

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from interp.controls.control import CONTROLS, Control, train_sample
from interp.exemplars.index import SplitIndex
from sae.activations.store import ActivationStore
from sae.autoencoder import Sae


@dataclasses.dataclass(frozen=True)
class ControlFeatures:
    """Controls that read the same activations, as the features of an autoencoder.

    Attributes:
      sae: the autoencoder.
      store: the activations that it reads.
      kind: for each control one of `CONTROLS`.
      matched: int32 [controls], the feature of the real autoencoder whose density each one has.
      direction: for each its number among the directions of its kind with its sign ("+17"), or "" where it has the
        number of the feature that it is matched with.
    """

    sae: Sae
    store: ActivationStore
    kind: tuple[str, ...]
    matched: np.ndarray
    direction: tuple[str, ...]


def build(
    sae: Sae, store: ActivationStore, train: SplitIndex, eligible: np.ndarray, count: int, seed: int
) -> list[ControlFeatures]:
    """Makes `count` controls of each kind, or at most as many as there are directions with their signs.

    Args:
      sae: the autoencoder, of activations that are not normalised.
      store: the activations.
      train: the features' activity on the train split.
      eligible: int [n], features to take densities and columns from, at least one.
      count: number of controls of each kind.
      seed: seed of all draws.
    """
    sample = train_sample(store, seed)
    density = train.n_tokens.sum(1) / train.total_tokens
    rng = np.random.default_rng((seed, count))
    made = []
    for name in CONTROLS.names():
        control = CONTROLS.get(name)()
        matched = rng.choice(eligible, count, replace=count > len(eligible))
        encoder, direction = _columns(control, sae, sample, matched, seed, rng)
        matched = matched[: encoder.shape[1]].astype(np.int32)
        # Shuffled activations have the same values on other tokens, so that their quantiles are those of the store.
        values = sample @ encoder
        threshold = np.array([np.quantile(values[:, i], 1 - density[own]) for i, own in enumerate(matched)], np.float32)
        made.append(_Kind(name, control, encoder, threshold, matched, direction))
    parts = [[kind for kind in made if kind.control.moves_activations == moved] for moved in (False, True)]
    return [_joined(sae, part[0].control.store(store), part) for part in parts if part]


@dataclasses.dataclass(frozen=True)
class _Kind:
    """The controls of one kind; attributes as of `ControlFeatures`, with directions [d_model, n] and thresholds [n]."""

    name: str
    control: Control
    encoder: np.ndarray
    threshold: np.ndarray
    matched: np.ndarray
    direction: tuple[str, ...]


def _columns(
    control: Control, sae: Sae, sample: np.ndarray, matched: np.ndarray, seed: int, rng: np.random.Generator
) -> tuple[np.ndarray, tuple[str, ...]]:
    """At most as many of a control's directions as features that it is matched with, and what each one is called."""
    if not control.either_sign:
        encoder = control.axes(sae, sample, matched, seed)
        return encoder, ("",) * encoder.shape[1]
    axes = control.axes(sae, sample, matched, seed)  # [d_model, axes]
    drawn = rng.permutation(2 * axes.shape[1])[: len(matched)]
    number, sign = drawn % axes.shape[1], np.where(drawn < axes.shape[1], 1, -1)
    names = tuple(f"{s:+d}"[0] + str(d) for d, s in zip(number, sign, strict=True))
    return (axes[:, number] * sign).astype(np.float32), names


def directions(
    name: str, sae: Sae, sample: np.ndarray, matched: Sequence[int], direction: Sequence[str], seed: int
) -> np.ndarray:
    """The directions of all controls of a kind that `build` made, in their order.

    Args:
      name: the kind.
      sae, seed: as `build` was given them.
      sample: `train_sample` of the store.
      matched, direction: attributes of `ControlFeatures`, of the controls of this kind.

    Returns:
      float32 [d_model, controls].
    """
    control = CONTROLS.get(name)()
    axes = control.axes(sae, sample, np.asarray(matched), seed)
    if not control.either_sign:
        return axes
    sign = np.array([1 if each.startswith("+") else -1 for each in direction], np.float32)
    return axes[:, [int(each[1:]) for each in direction]] * sign


def _joined(sae: Sae, store: ActivationStore, kinds: Sequence[_Kind]) -> ControlFeatures:
    """Controls that read the same activations as one autoencoder."""
    encoder = np.concatenate([kind.encoder for kind in kinds], axis=1)  # [d_model, controls]
    params = {
        "W_enc": jnp.asarray(encoder),
        "b_enc": jnp.asarray(-np.concatenate([kind.threshold for kind in kinds])),
        "W_dec": jnp.asarray(encoder.T),
        "b_dec": jnp.zeros(sae.d_model, jnp.float32),
    }
    return ControlFeatures(
        Sae(params, 0.0, sae.k, (encoder.shape[1],)),
        store,
        tuple(kind.name for kind in kinds for _ in kind.matched),
        np.concatenate([kind.matched for kind in kinds]),
        tuple(direction for kind in kinds for direction in kind.direction),
    )

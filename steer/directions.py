"""Directions of the residual stream to steer along, each with the size of one unit of strength.

A steered position becomes x + strength * unit * vector, where `vector` has length 1 and `unit` is
in the residual stream's own scale. The arms of one target share its unit, so at the same strength
every arm moves the residual stream equally far:

* "feature": the feature's decoder row of the sparse autoencoder;
* "means": the mean over the studies with the concept minus the mean over those without, of each
  study's mean activation on its findings tokens (training studies only);
* "random": a normal random direction;
* "none": no direction, the unsteered report.
"""

import dataclasses
import json
from collections.abc import Sequence

import numpy as np

from maira_jax.processing.tokens import Kind
from sae.activations import TRAIN, Store
from sae.autoencoder import Sae

ARMS = ("feature", "means", "random")
NONE = "none"
_ROWS = 65536  # rows of the store in memory at a time


@dataclasses.dataclass(frozen=True)
class Target:
    """What is to be steered.

    Attributes:
      concept: the study-level concept, "" when none is known for the feature.
      feature: the feature of the autoencoder.
      max_activation: the feature's largest activation, in raw activation units.
      explanation: the interpretation's words for it.
      f1: how well the feature detects the concept on held-out studies, None if not measured.
    """

    concept: str
    feature: int
    max_activation: float
    explanation: str = ""
    f1: float | None = None


@dataclasses.dataclass(frozen=True)
class Direction:
    """A direction with its unit of strength.

    Attributes:
      key: its name in the results, unique.
      arm: one of `ARMS`, or "none".
      target: what it is meant to steer; None for "none".
      vector: float32 [d_model], length 1 (zero for "none").
      unit: length, in the residual stream, of a strength of 1.
    """

    key: str
    arm: str
    target: Target | None
    vector: np.ndarray
    unit: float


@dataclasses.dataclass(frozen=True)
class StudyMeans:
    """Means over findings tokens.

    Attributes:
      means: float32 [studies, d_model], each study's mean activation; NaN without findings tokens.
      labels: each study's concepts.
      residual_norm: mean length of a findings token's activation.
    """

    means: np.ndarray
    labels: tuple[dict[str, bool], ...]
    residual_norm: float

    @classmethod
    def of(cls, store: Store) -> "StudyMeans":
        """Reads the training split of an activation store once, a piece at a time."""
        studies, tokens = store.studies, store.tokens
        train = np.asarray(studies["split"].to_pylist()) == TRAIN  # [studies]
        study = tokens["study"].to_numpy()
        wanted = train[study] & (tokens["kind"].to_numpy() == Kind.FINDINGS)
        sums = np.zeros((len(train), store.d_model), np.float64)
        counts = np.zeros(len(train))
        norms = 0.0
        for start in range(0, store.n_tokens, _ROWS):
            stop = min(start + _ROWS, store.n_tokens)
            here = wanted[start:stop]
            if not here.any():
                continue
            x = store.read(start, stop)[here].astype(np.float64)  # [tokens here, d_model]
            of = study[start:stop][here]
            firsts = np.flatnonzero(np.diff(of, prepend=-1))
            sums[of[firsts]] += np.add.reduceat(x, firsts)
            counts += np.bincount(of, minlength=len(counts))
            norms += np.linalg.norm(x, axis=1).sum()
        with np.errstate(invalid="ignore"):
            means = (sums / counts[:, None]).astype(np.float32)
        labels = tuple(json.loads(text) for text in studies["labels"].to_pylist())
        return cls(means, labels, float(norms / max(counts.sum(), 1)))

    def difference(self, concept: str) -> np.ndarray | None:
        """Mean with the concept minus mean without, float32 [d_model].

        None where the concept is never present, or never absent, in studies with findings.
        """
        known = np.isfinite(self.means).all(axis=1)
        has = np.array([bool(labels.get(concept)) for labels in self.labels]) & known
        lacks = np.array([labels.get(concept) is False for labels in self.labels]) & known
        if not has.any() or not lacks.any():
            return None
        return self.means[has].mean(axis=0) - self.means[lacks].mean(axis=0)


def _unit_vector(vector: np.ndarray) -> np.ndarray:
    return (vector / max(float(np.linalg.norm(vector)), 1e-12)).astype(np.float32)


def feature(sae: Sae, target: Target, unit: float) -> Direction:
    """The decoder row of the target's feature."""
    vector = _unit_vector(np.asarray(sae.params["W_dec"][target.feature]))
    return Direction(f"feature-{target.feature}", "feature", target, vector, unit)


def difference_of_means(means: StudyMeans, target: Target, unit: float) -> Direction | None:
    """The direction from studies without the target's concept to those with it, if there are both."""
    vector = means.difference(target.concept) if target.concept else None
    if vector is None:
        return None
    key = f"means-{target.concept.replace(' ', '-')}"
    return Direction(key, "means", target, _unit_vector(vector), unit)


def random(d_model: int, target: Target, unit: float, seed: int) -> Direction:
    """A random direction, the same for the same seed and feature."""
    rng = np.random.default_rng([seed, target.feature])
    vector = _unit_vector(rng.standard_normal(d_model))
    return Direction(f"random-{target.feature}", "random", target, vector, unit)


def none(d_model: int) -> Direction:
    """No direction: what the program writes at strength 0."""
    return Direction(NONE, NONE, None, np.zeros(d_model, np.float32), 0.0)


def make(
    targets: Sequence[Target],
    arms: Sequence[str],
    unit: str,
    sae: Sae,
    means: StudyMeans,
    seed: int,
) -> list[Direction]:
    """All arms of all targets, targets first.

    Args:
      targets: what to steer.
      arms: a selection of `ARMS`.
      unit: what a strength of 1 is: "max_activation" (of the target's feature), "residual_norm"
        (mean length of the residual stream on findings tokens) or "raw" (length 1).
      sae: the autoencoder.
      means: of the activations that the autoencoder was trained on.
      seed: of the random directions.
    """
    found: list[Direction] = []
    for target in targets:
        size = {
            "max_activation": target.max_activation,
            "residual_norm": means.residual_norm,
            "raw": 1.0,
        }[unit]
        for arm in arms:
            if arm == "feature":
                found.append(feature(sae, target, size))
            elif arm == "random":
                found.append(random(sae.d_model, target, size, seed))
            elif (direction := difference_of_means(means, target, size)) is not None:
                found.append(direction)
    return found

"""What a sweep steers with: directions of the residual stream, and what is done along them.

A strength is in units. The arms of one target share its unit, so at the same strength every arm that adds moves the
residual stream equally far. The arms:

* "feature": adds the feature's decoder row of the sparse autoencoder;
* "features": adds the decoder rows of all features that detect the concept about as well, each by its own largest
  activation;
* "clamp": sets the feature, where it is and where it is not, to strength units;
* "typical": sets the features that differ between the training studies with the concept and those without it to what
  they are with it, or without it (no strengths);
* "ablate": sets the feature to 0 (no strengths);
* "project": takes out of the residual stream what it has along the feature's decoder row (no strengths);
* "means": adds the mean over the studies with the concept minus the mean over those without, of each study's mean
  activation on the tokens that are edited, its findings for generated ones (training studies only);
* "probe": adds the weights of a logistic regression on the same means;
* "random": adds a normal random direction;
* "prompt": says in the study's indication that there is the concept, or that there is none (no strengths, no vector);
* "combination": boosts and suppresses features that the user named;
* "none": nothing, the unsteered report.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence

import jax.numpy as jnp
import numpy as np

from maira_jax.errors import UserError
from maira_jax.model.sites import Site
from sae.autoencoder import Sae
from steer.methods.means import StudyMeans
from steer.methods.typical import Typical
from steer.program.edit import Edits

ARMS = ("feature", "features", "clamp", "typical", "ablate", "project", "means", "probe", "random", "prompt")
COMBINATION, NONE, PROMPT = "combination", "none", "prompt"
# Arms that have no strengths; the sign says which way they mean to go.
FIXED = {"typical": (-1.0, 1.0), "ablate": (-1.0,), "project": (-1.0,), PROMPT: (-1.0, 1.0)}


@dataclasses.dataclass(frozen=True)
class Target:
    """What is to be steered.

    Attributes:
      concept: the study-level concept, "" when none is known for the feature.
      feature: the feature of the autoencoder.
      max_activation: the feature's largest activation, in raw activation units.
      explanation: the interpretation's words for it.
      f1: how well the feature detects the concept on held-out studies, None if not measured.
      others: features that detect the concept about as well, with their largest activations.
    """

    concept: str
    feature: int
    max_activation: float
    explanation: str = ""
    f1: float | None = None
    others: tuple[tuple[int, float], ...] = ()


@dataclasses.dataclass(frozen=True)
class Reading:
    """What an edit sets: C numbers that are read off the residual stream x.

    f_c(x) is x . reader[c] + bias[c] where that is above threshold[c], else 0; it becomes strength * value[c] by adding
    the missing multiple of writer[c].

    Attributes:
      reader, writer: float32 [C, d_model].
      bias, threshold, value: float32 [C].
    """

    reader: np.ndarray
    writer: np.ndarray
    bias: np.ndarray
    threshold: np.ndarray
    value: np.ndarray

    @classmethod
    def of_feature(cls, sae: Sae, number: int, value: float) -> "Reading":
        """A feature of an autoencoder, which becomes strength * value."""
        w_enc, w_dec, b_enc, b_dec = (np.asarray(sae.params[name]) for name in ("W_enc", "W_dec", "b_enc", "b_dec"))
        reader, writer = w_enc[:, number], w_dec[number]
        bias = b_enc[number] - b_dec @ reader
        threshold = float(np.broadcast_to(sae.threshold, sae.n_features)[number])
        return cls(reader[None], writer[None], *_each(bias, max(threshold, 0.0), value))

    @classmethod
    def of_features(cls, sae: Sae, values: Mapping[int, float]) -> "Reading":
        """Features of an autoencoder, each of which becomes strength times its value."""
        each = [cls.of_feature(sae, number, value) for number, value in values.items()]
        fields = (field.name for field in dataclasses.fields(cls))
        return cls(*(np.concatenate([getattr(one, name) for one in each]) for name in fields))

    @classmethod
    def along(cls, vector: np.ndarray) -> "Reading":
        """How far x reaches along a vector of length 1, which becomes 0."""
        return cls(vector[None], vector[None], *_each(0.0, -np.inf, 0.0))


def _each(*numbers: float) -> tuple[np.ndarray, ...]:
    return tuple(np.array([number], np.float32) for number in numbers)


@dataclasses.dataclass(frozen=True)
class Direction:
    """A direction with its unit of strength.

    Attributes:
      key: its name in the results, unique.
      arm: one of `ARMS`, "combination" or "none".
      target: what it is meant to steer; None for "none".
      vector: float32 [d_model], length 1, which is added; zero where nothing is.
      unit: length, in the residual stream, of a strength of 1.
      reading: what is set instead.
      against: what is set at a strength below 0, where that is something else.
      also: concepts, beside the target's, that are meant to change.
    """

    key: str
    arm: str
    target: Target | None
    vector: np.ndarray
    unit: float
    reading: Reading | None = None
    against: Reading | None = None
    also: tuple[str, ...] = ()

    def strengths(self, wanted: Sequence[float]) -> Sequence[float]:
        """The strengths that make sense for it."""
        return FIXED.get(self.arm, wanted)

    def sets(self, strength: float) -> Reading | None:
        """What is set at a strength; None where nothing is."""
        if not strength:
            return None
        return self.against if strength < 0 and self.against else self.reading


def edits(directions: Sequence[Direction], strengths: Sequence[float], site: Site) -> Edits:
    """The edit of some rows: row i steers along directions[i] by strengths[i] of its units.

    All fields are arrays whose shapes depend on the number of rows and on the most that one of them sets.

    Args:
      directions: [batch].
      strengths: [batch], in units of each direction; 0 edits nothing.
      site: where.
    """
    n, width = len(directions), len(directions[0].vector)
    most = max((len(r.bias) for d in directions for r in (d.reading, d.against) if r), default=0)
    arrays = {name: np.zeros((n, most, width), np.float32) for name in ("reader", "writer")}
    arrays |= {name: np.zeros((n, most), np.float32) for name in ("bias", "threshold", "target", "share")}
    for row, (direction, strength) in enumerate(zip(directions, strengths, strict=True)):
        reading = direction.sets(strength)
        if reading is None:
            continue
        here = slice(0, len(reading.bias))
        for name in ("reader", "writer", "bias", "threshold"):
            arrays[name][row, here] = getattr(reading, name)
        arrays["target"][row, here] = strength * reading.value
        arrays["share"][row, here] = 1.0
    raw = [s * d.unit if d.reading is None else 0.0 for s, d in zip(strengths, directions, strict=True)]
    return Edits(
        site=jnp.full(n, site.code, jnp.int32),
        direction=jnp.asarray(np.stack([d.vector for d in directions])),
        strength=jnp.asarray(raw, jnp.float32),
        **{name: jnp.asarray(array) for name, array in arrays.items()},
    )


def _unit_vector(vector: np.ndarray) -> np.ndarray:
    return (vector / max(float(np.linalg.norm(vector)), 1e-12)).astype(np.float32)


def none(d_model: int) -> Direction:
    """No direction: what the program writes at strength 0."""
    return Direction(NONE, NONE, None, np.zeros(d_model, np.float32), 0.0)


def random(d_model: int, seed: int, feature: int) -> np.ndarray:
    """A random direction, the same for the same seed and feature."""
    return _unit_vector(np.random.default_rng([seed, feature]).standard_normal(d_model))


def size(unit: str, max_activation: float, means: StudyMeans) -> float:
    """What a strength of 1 is: "max_activation" (of the target's feature), "residual_norm" (mean length of the residual
    stream on the edited tokens) or "raw" (length 1)."""
    return {"max_activation": max_activation, "residual_norm": means.residual_norm, "raw": 1.0}[unit]


def _arm(
    arm: str, target: Target, unit: float, sae: Sae, means: StudyMeans, typical: Typical | None, seed: int
) -> Direction | None:
    """One arm of one target, None where it does not exist."""
    row = _unit_vector(np.asarray(sae.params["W_dec"][target.feature]))
    nothing = np.zeros_like(row)
    key, concept = f"{arm}-{target.feature}", target.concept.replace(" ", "-")
    if arm == "feature":
        return Direction(key, arm, target, row, unit)
    if arm == "clamp":
        return Direction(key, arm, target, nothing, unit, Reading.of_feature(sae, target.feature, unit))
    if arm == "ablate":
        return Direction(key, arm, target, nothing, unit, Reading.of_feature(sae, target.feature, 0.0))
    if arm == "project":
        return Direction(key, arm, target, nothing, unit, Reading.along(row))
    if arm == "random":
        return Direction(key, arm, target, random(sae.d_model, seed, target.feature), unit)
    if arm == "features":
        if not target.others:
            return None
        members = ((target.feature, target.max_activation), *target.others)
        vector = sum(largest * np.asarray(sae.params["W_dec"][number]) for number, largest in members)
        return Direction(key, arm, target, _unit_vector(np.asarray(vector)), unit)
    if not concept:
        return None
    if arm == "typical":
        known = typical and typical.settings(target.concept, target.feature)
        if not known:
            return None
        there, gone = known
        against = Reading.of_features(sae, {number: -value for number, value in gone.items()})  # at a strength of -1
        return Direction(key, arm, target, nothing, unit, Reading.of_features(sae, there), against)
    if arm == PROMPT:
        return Direction(f"{arm}-{concept}", arm, target, nothing, 0.0)
    found = means.difference(target.concept) if arm == "means" else means.probe(target.concept)
    return None if found is None else Direction(f"{arm}-{concept}", arm, target, _unit_vector(found), unit)


def make(
    targets: Sequence[Target],
    arms: Sequence[str],
    unit: str,
    sae: Sae,
    means: StudyMeans,
    typical: Typical | None,
    seed: int,
) -> list[Direction]:
    """All arms of all targets, targets first.

    Args:
      targets: what to steer.
      arms: a selection of `ARMS`.
      unit: see `size`.
      sae: the autoencoder.
      means: of the activations that the autoencoder was trained on.
      typical: of the same; may be None without the arm "typical".
      seed: of the random directions.
    """
    found: dict[str, Direction] = {}
    for target in targets:
        for arm in arms:
            direction = _arm(arm, target, size(unit, target.max_activation, means), sae, means, typical, seed)
            if direction is not None:
                found.setdefault(direction.key, direction)
    return list(found.values())


def combination(text: str, known: Mapping[int, Target], unit: str, sae: Sae, means: StudyMeans) -> Direction:
    """Features that are boosted (12) and suppressed (-7) together, each by its own largest activation: "12-7+30".

    Args:
      text: the features; the first one gives the target.
      known: at least these features.
      unit: see `size`; with "max_activation" a strength of 1 moves each feature by its largest activation.
    """
    parts = [(number, -1.0 if sign == "-" else 1.0) for sign, number in members(text)]
    vector = sum(sign * known[n].max_activation * np.asarray(sae.params["W_dec"][n]) for n, sign in parts)
    length = float(np.linalg.norm(vector))
    also = tuple(known[number].concept for number, _ in parts[1:] if known[number].concept)
    target = known[parts[0][0]]
    return Direction(text, COMBINATION, target, _unit_vector(np.asarray(vector)), size(unit, length, means), also=also)


def members(text: str) -> list[tuple[str, int]]:
    """The signs and features of a combination.

    Raises:
      UserError: it is none.
    """
    if not re.fullmatch(r"\d+([+-]\d+)+", text):
        raise UserError(
            f"steer.combinations names {text!r}, which is none: write features to boost and to suppress, like 12+30-7"
        )
    return [(sign, int(number)) for sign, number in re.findall(r"([+-]?)(\d+)", text)]

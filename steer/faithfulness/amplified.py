"""What is amplified: explained features, and explained controls along the directions that they were read by."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from interp.controls import CONTROLS, matched
from interp.controls.control import train_sample
from interp.medsae.vectors import FEATURES
from maira_jax.errors import UserError
from sae.activations.store import ActivationStore
from sae.autoencoder import Sae
from steer.methods.direction import Direction
from steer.methods.intervention import Intervention
from steer.selection.target import Target

_KNOWN = ("name", "explanation", "detection")


@dataclasses.dataclass(frozen=True)
class Amplified:
    """A direction with its explanation.

    Attributes:
      basis: "features", or the kind of control.
      feature: the feature; of a control the one that has its density.
      name: a few words of the explanation.
      explanation: what the direction is believed to stand for.
      direction: what is added.
    """

    basis: str
    feature: int
    name: str
    explanation: str
    direction: Direction

    @classmethod
    def of(cls, basis: str, row: dict[str, Any], number: int, vector: np.ndarray, size: float) -> "Amplified":
        """A row of features.parquet or controls.parquet; a strength of 1 moves by `size` along `vector`."""
        feature = row["feature"] if basis == FEATURES else row["matched_feature"]
        target = Target("", feature, size, row["explanation"])
        direction = Direction(f"{basis} {number}", basis, target, Intervention.adding(vector, size))
        return cls(basis, feature, row["name"], row["explanation"], direction)


def chosen(interp: Path, sae: Sae, store: ActivationStore, n: int, seed: int) -> list[Amplified]:
    """At most `n` features, and `n` controls of each kind that reads the features' own activations.

    A strength of 1 is the feature's largest activation, of a control that of the feature which it is matched with, so
    that all move the residual stream equally far.

    Args:
      interp: the folder of the interpretation.
      sae: the autoencoder.
      store: the activations.
      n: the largest number of each.
      seed: the seed of the interpretation and of the draw.

    Raises:
      UserError: no explanation was scored.
    """
    features = pq.read_table(interp / "features.parquet", columns=["feature", "max_activation", *_KNOWN]).to_pylist()
    largest = {row["feature"]: float(row["max_activation"]) for row in features}
    scored = [row for row in features if row["detection"] is not None]
    if not scored:
        raise UserError(f"{interp} has no scored explanation whose feature could be amplified: interpret more studies")
    w_dec = np.asarray(sae.params["W_dec"])
    found = [
        Amplified.of(FEATURES, row, row["feature"], w_dec[row["feature"]], largest[row["feature"]])
        for row in _drawn(scored, n, seed)
    ]
    columns = ["control", "direction", "matched_feature", *_KNOWN]
    controls = pq.read_table(interp / "controls.parquet", columns=columns).to_pylist()
    sample = train_sample(store, seed)
    for name in CONTROLS.names():
        rows = [row for row in controls if row["control"] == name]
        if not rows or CONTROLS.get(name).moves_activations:
            continue
        made = [row["matched_feature"] for row in rows], [row["direction"] for row in rows]
        vectors = matched.directions(name, sae, sample, *made, seed)  # [d_model, rows]
        numbered = [(number, row) for number, row in enumerate(rows) if row["detection"] is not None]
        found += [
            Amplified.of(name, row, number, vectors[:, number], largest[row["matched_feature"]])
            for number, row in _drawn(numbered, n, seed)
        ]
    return found


def _drawn(rows: Sequence[Any], n: int, seed: int) -> list[Any]:
    """At most `n` of some rows, at random, in their order."""
    kept = np.random.default_rng((seed, len(rows))).permutation(len(rows))[:n]
    return [rows[number] for number in sorted(kept.tolist())]

"""What is known of the features of an autoencoder."""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from interp.sets import OWN_SET, read_set
from maira_jax.errors import UserError, first_line
from sae import autoencoder
from sae.activations.store import TRAIN, ActivationStore
from sae.autoencoder import Sae
from steer.selection.target import Target

_MIN_F1_RATIO = 0.9  # of the best feature's F1, for a feature that is steered together with it
_BLOCK_ROWS = 16384  # rows of the store that are encoded at a time


@dataclasses.dataclass(frozen=True)
class FeatureCatalogue:
    """What is known of the features of an autoencoder.

    Attributes:
      features: by the number of the feature, its row of the interpretation: at least `explanation` and
        `max_activation`, and of the run's own ones the `detection` score of the explanation, the `concept` that it
        detects best and `concept_f1`.
      concepts: one row per concept, with its best feature; sorted by F1, best first.
      source: the folder or file that this was read from, for error messages.
    """

    features: dict[int, dict[str, Any]]
    concepts: list[dict[str, Any]]
    source: str

    @classmethod
    def read(cls, workdir: Path, set_name: str = OWN_SET) -> Self:
        """The results of the interpret stage, with the explanations of a set of interpretations.

        Raises:
          UserError: a table cannot be read, or there is no such set.
        """
        interp_dir = workdir / OWN_SET
        columns: tuple[str, ...] = ("feature", "explanation", "detection", "max_activation", "concept", "concept_f1")
        features = _table(interp_dir / "features.parquet", columns)
        if set_name != OWN_SET:
            texts = _explanations(read_set(workdir, set_name))
            features = [row | {"explanation": texts.get(row["feature"])} for row in features]
        columns = ("concept", "feature", "f1", "runners_up", "runners_up_f1")
        known = {row["feature"]: row for row in features}
        concepts = [row for row in _table(interp_dir / "concepts.parquet", columns) if row["feature"] in known]
        return cls(known, sorted(concepts, key=lambda row: -(row["f1"] or 0.0)), str(interp_dir))

    @classmethod
    def measured(cls, sae: Sae, store: ActivationStore, numbers: Sequence[int], source: str) -> Self:
        """Features of an autoencoder that was not interpreted, with their largest activations on the training tokens.

        Raises:
          UserError: a feature does not exist.
        """
        chosen = sorted(set(numbers))
        for number in chosen:
            if number >= sae.n_features:
                raise UserError(f"{source} has no feature {number}: it has {sae.n_features}")
        encode = _encoder(sae, np.array(chosen))
        train = np.asarray(store.studies["split"].to_pylist()) == TRAIN
        wanted = train[store.tokens.study]
        largest = np.zeros(len(chosen))
        for start in range(0, store.n_tokens, _BLOCK_ROWS):
            here = wanted[start : start + _BLOCK_ROWS]
            if here.any():
                x = store.read(start, start + len(here))[here].astype(np.float32)
                largest = np.maximum(largest, np.asarray(encode(x)).max(axis=0))
        rows = {n: {"feature": n, "explanation": "", "max_activation": m} for n, m in zip(chosen, largest, strict=True)}
        return cls(rows, [], source)

    def best_of(self, concepts: Sequence[str]) -> list[Target]:
        """The best feature of each concept that was measured.

        Raises:
          UserError: none was.
        """
        rows = {row["concept"]: row for row in self.concepts}
        found = [
            dataclasses.replace(self._detecting(rows[concept]), of_concept=True)
            for concept in concepts
            if concept in rows
        ]
        if not found:
            known = ", ".join(sorted(rows)) or "none"
            raise UserError(f"steer.concepts names none that {self.source} has a feature for: choose from {known}")
        return found

    def detectors(self, concept: str) -> dict[int, float]:
        """The features that are known to detect a concept, each with its F1: the best one first.

        They are the best ones of the concept, and those that detect no other concept better.
        """
        row = next(row for row in self.concepts if row["concept"] == concept)
        found = dict(zip([row["feature"], *row["runners_up"]], [row["f1"], *row["runners_up_f1"]], strict=True))
        for number, own in self.features.items():
            if own.get("concept") == concept:
                found.setdefault(number, own["concept_f1"])
        known = [number for number in found if number in self.features and found[number] is not None]
        return {number: found[number] for number in sorted(known, key=lambda n: (n != row["feature"], -found[n]))}

    def candidate(self, concept: str, number: int, chosen_by: Mapping[str, float]) -> Target:
        """A feature for a concept, which need not be one that was measured, with the scores that it was chosen by."""
        best = next((row for row in self.concepts if row["concept"] == concept), None)
        if best is not None and best["feature"] == number:
            found = self._detecting(best)
        else:
            explanation, largest = self._known(number)
            f1 = self.detectors(concept).get(number) if best is not None else None
            found = Target(concept, number, largest, explanation, f1)
        return dataclasses.replace(found, of_concept=True, chosen_by=tuple(chosen_by.items()))

    @property
    def max_activations(self) -> np.ndarray:
        """The largest activation of every feature, in their order, float32 [F]."""
        return np.array([self.features[number]["max_activation"] for number in sorted(self.features)], np.float32)

    def target(self, number: int) -> Target:
        """A feature with its concept.

        Of the concepts whose best feature it is, that is the one that it detects best; else the longest one that its
        explanation names; else "".

        Raises:
          UserError: the feature does not exist.
        """
        if number not in self.features:
            raise UserError(
                f"feature {number} is to be steered, but {self.source} has {len(self.features)}, numbered from "
                f"{min(self.features, default=0)} to {max(self.features, default=0)}: choose one of them"
            )
        best = next((c for c in self.concepts if c["feature"] == number), None)
        if best is not None:
            return self._detecting(best)
        explanation, largest = self._known(number)
        names = [c["concept"] for c in self.concepts]
        inside = [name for name in names if re.search(rf"\b{re.escape(name)}\b", explanation, re.IGNORECASE)]
        return Target(max(inside, key=len, default=""), number, largest, explanation)

    def _known(self, number: int) -> tuple[str, float]:
        """The explanation of a feature, and its largest activation."""
        row = self.features[number]
        return row["explanation"] or "", float(row["max_activation"])

    def _detecting(self, best: dict[str, Any]) -> Target:
        """The feature of a row of `concepts`, with the concept of the row."""
        explanation, largest = self._known(best["feature"])
        others = tuple(
            (other, float(self.features[other]["max_activation"]))
            for other, f1 in zip(best["runners_up"], best["runners_up_f1"], strict=True)
            if other in self.features and f1 >= _MIN_F1_RATIO * (best["f1"] or 1.0)
        )
        return Target(best["concept"], best["feature"], largest, explanation, best["f1"], others)


def _encoder(sae: Sae, columns: np.ndarray) -> Callable[[np.ndarray], jax.Array]:
    """The function from raw activations to the features numbered `columns`, [n, d_model] -> [n, columns]."""
    if sae.per_token:  # which features are kept depends on all the others
        return lambda x: sae.encode(jnp.asarray(x))[:, columns]
    part = {name: sae.params[name][..., columns] for name in ("W_enc", "b_enc")} | {"b_dec": sae.params["b_dec"]}
    threshold = np.broadcast_to(np.asarray(sae.threshold, np.float32), sae.n_features)[columns]
    return lambda x: autoencoder.encode(part, jnp.asarray(x), threshold)


def _explanations(table: pa.Table) -> dict[int, str]:
    """The explanation of each feature of an imported set, after its name if that says something else."""
    rows = table.select(["feature", "name", "explanation"]).to_pylist()
    texts = {row["feature"]: list(dict.fromkeys(filter(None, (row["name"], row["explanation"])))) for row in rows}
    return {feature: " / ".join(found) for feature, found in texts.items()}


def _table(path: Path, columns: tuple[str, ...]) -> list[dict[str, Any]]:
    try:
        return pq.read_table(path, columns=list(columns)).to_pylist()
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(f"{path} cannot be read ({first_line(error)}): interpret again") from error

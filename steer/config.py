"""The `steer` section of a configuration, checked."""

import dataclasses
import math
import re
from typing import Self

import ml_collections
import numpy as np

from maira_jax.errors import UserError
from maira_jax.inputs.tokens import FRONTAL, Kind, token_filter_mask
from maira_jax.run import fields
from steer.methods import directions

UNITS = ("max_activation", "residual_norm", "raw")
GENERATED = "generated"
_TUPLES = {"features": int, "combinations": str, "arms": str, "strengths": float, "positions": str}
# Parts of a prompt by the names that `steer.positions` gives them.
PARTS = {
    **{kind.name.lower(): (kind,) for kind in Kind if kind not in (Kind.PAD, Kind.FINDINGS, Kind.EOS, Kind.IMAGE_LAST)},
    "image": (Kind.IMAGE, Kind.IMAGE_LAST),
    "prompt": tuple(kind for kind in Kind if kind != Kind.PAD),
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """The `steer` section.

    Attributes:
      name: of the sweep, and of its folder.
      features, match, top: which features, see `Catalogue.choose`.
      combinations: see `directions.combination`.
      arms: a selection of `directions.ARMS`.
      strengths: without 0, which is always there.
      unit: one of `UNITS`, see `directions.size`.
      positions: what is edited: "generated" (every token that produces one), names of `PARTS`, and "frontal" (of the
        images only the first, the current frontal one).
      sae: a file of another autoencoder than the run's own, or "".
      manifest: a manifest of studies to steer instead of the held-out ones, or "".
      studies: at most so many studies, in the store's or the manifest's order.
      batch_studies: whose rows are written together.
      batch_rows: of each of these studies.
      workers: batches that are written side by side.
      max_new_tokens: longest report.
      temperature, top_p: see `maira_jax.generation.decode.Sampling`; a temperature of 0 takes the most likely token.
    """

    name: str
    features: tuple[int, ...]
    match: str
    top: int
    combinations: tuple[str, ...]
    arms: tuple[str, ...]
    strengths: tuple[float, ...]
    unit: str
    positions: tuple[str, ...]
    sae: str
    manifest: str
    studies: int
    batch_studies: int
    batch_rows: int
    workers: int
    max_new_tokens: int
    temperature: float
    top_p: float

    @classmethod
    def from_section(cls, section: ml_collections.ConfigDict) -> Self:
        """Reads and checks the section.

        Raises:
          UserError: a field is out of range.
        """
        values = {field.name: section[field.name] for field in dataclasses.fields(cls)}
        lists = {name: fields.tuple_of(kind, f"steer.{name}", values[name]) for name, kind in _TUPLES.items()}
        strengths = tuple(float(s) for s in lists["strengths"])
        for name in ("top", "studies", "batch_studies", "batch_rows", "workers", "max_new_tokens"):
            if values[name] < 1:
                raise UserError(f"steer.{name} is {values[name]}, but must be at least 1: change it")
        if not (0 <= values["temperature"] < math.inf and 0 < values["top_p"] <= 1):
            raise UserError(
                f"steer.temperature {values['temperature']} must be 0 or more, and steer.top_p {values['top_p']} "
                "above 0 and at most 1: change them"
            )
        if not re.fullmatch(r"\w[\w.-]*", values["name"]):
            raise UserError(f"steer.name {values['name']!r} cannot name a folder: use letters, digits, '-' and '_'")
        if not all(map(math.isfinite, strengths)) or not any(strengths):
            raise UserError(f"steer.strengths {strengths} must be numbers, one of them not 0: change them")
        for name, known in (("unit", UNITS), ("arms", directions.ARMS), ("positions", (GENERATED, FRONTAL, *PARTS))):
            given = (values[name],) if name == "unit" else lists[name]
            if set(given) - set(known) or not given:
                raise UserError(f"steer.{name} {given} must be chosen from {', '.join(known)}: change it")
        if lists["features"] and values["match"]:
            raise UserError("steer.features and steer.match exclude each other: empty one of them")
        if values["sae"] and not (lists["features"] or lists["combinations"]):
            raise UserError("nothing is known of the features of steer.sae: name some in steer.features")
        for text in lists["combinations"]:
            directions.members(text)
        lists["strengths"] = tuple(dict.fromkeys(s for s in strengths if s))
        return cls(**values | lists)

    @property
    def sampling(self) -> str:
        """How tokens are chosen, in words."""
        return f"temperature {self.temperature}, top_p {self.top_p}" if self.temperature else "greedy"

    @property
    def generated(self) -> bool:
        """Whether tokens that produce a token are edited, the prompt's last one included."""
        return GENERATED in self.positions

    @property
    def edits_prompt(self) -> bool:
        """Whether any token of a prompt is edited, but for the last one."""
        return set(self.positions) != {GENERATED}

    def taken(self, kinds: np.ndarray) -> np.ndarray:
        """Which tokens of a study stand for those that are edited, bool: findings for generated ones."""
        return self.edited(kinds) | ((kinds == Kind.FINDINGS) & self.generated)

    def edited(self, kinds: np.ndarray) -> np.ndarray:
        """Which tokens of prompts are edited, bool, the shape of `kinds` (of `Kind`)."""
        found = np.isin(kinds, [int(kind) for name in self.positions for kind in PARTS.get(name, ())])
        return found | token_filter_mask(kinds, FRONTAL) if FRONTAL in self.positions else found

"""How well each concept is written at each site: reports with the difference of means added, and with tokens ablated.

Reports are written by the program of a sweep, in which every row has a site of its own, so that one program writes all
sites of a tower. Three kinds of rows edit the tokens of a section:

* the difference of the means of the fitted studies with and without a concept is added, at several strengths;
* all tokens are ablated: they become the mean of the fitted studies;
* at the frontal image, the patches at a finding alone are ablated, in studies with a box of it.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from interp.features.concepts import StudyLabels
from maira_jax.inputs.image import width_height
from maira_jax.inputs.regions import patch_boxes
from maira_jax.inputs.tokens import FRONTAL
from maira_jax.model.config import Maira2Config
from maira_jax.model.layers import Params
from maira_jax.reports.changes import cached_parse
from maira_jax.run.performance.profile import OFF
from maira_jax.studies.study import Study
from steer.config import SteerSection
from steer.evaluate import result_row
from steer.localize.section import LocalizePoint
from steer.methods.difference_of_means import difference
from steer.methods.direction import Direction
from steer.methods.intervention import Intervention
from steer.methods.study_means import class_masks
from steer.program.prompts import Prompts
from steer.program.sweep_writer import GenerationRow, SweepWriter
from steer.rates import summarise
from steer.selection.target import Target
from steer.stage import write_parts
from steer.sweep import Sweep

WRITTEN, ABLATED = "difference_of_means", "ablation"


class WritingScore(NamedTuple):
    """What adding a concept's direction does to reports without it, at the strength that was best on other studies.

    Attributes:
      rates: by measure of `steer.rates`, with intervals.
      strength: the strength; None where no study could choose one.
    """

    rates: Mapping[str, Any]
    strength: float | None


class LostShare(NamedTuple):
    """Of `n` reports with a concept the share that no longer have it; None of none."""

    share: float | None
    n: int


@dataclasses.dataclass(frozen=True)
class WritingGroup:
    """The rows that one program writes: those of a tower, and of a section of the prompt.

    Attributes:
      name: its folder.
      points: its sites.
      section: the sweep's section.
      studies: the studies that are written.
      patches: the concept of each study whose patches are ablated; empty where all tokens are edited.
    """

    name: str
    points: tuple[LocalizePoint, ...]
    section: SteerSection
    studies: tuple[Study, ...]
    patches: tuple[str, ...] = ()

    def rows(
        self, concepts: Sequence[str], strengths: Sequence[float], means: Mapping[LocalizePoint, "PointMeans"], d: int
    ) -> list[GenerationRow]:
        """The rows of each study, the unsteered report first."""
        rows = [GenerationRow(Direction.none(d), 0.0, self.points[0].site)]
        for point in self.points:
            if self.section.edits_prompt:
                ablation = Intervention.replacing(means[point].mean)
                rows.append(GenerationRow(_direction(point, ABLATED, "", ablation), 1.0, point.site))
            for concept in () if self.patches else concepts:
                vector = means[point].difference(concept)
                adding = Intervention.adding(vector, float(np.linalg.norm(vector)))
                direction = _direction(point, WRITTEN, concept, adding)
                rows += [GenerationRow(direction, strength, point.site) for strength in strengths]
        return rows


def _direction(point: LocalizePoint, method: str, concept: str, intervention: Intervention) -> Direction:
    target = Target(concept, -1, 0.0) if concept else None
    return Direction(f"{point.site.name} {point.section} {concept or method}", method, target, intervention)


@dataclasses.dataclass(frozen=True)
class PointMeans:
    """The studies' mean activations at a point that directions are made of.

    Attributes:
      x: float32 [studies, d], of the fitted studies with such tokens.
      labels: their labels.
    """

    x: np.ndarray
    labels: StudyLabels

    @property
    def mean(self) -> np.ndarray:
        """The mean over the studies, float32 [d]; 0 of none."""
        return self.x.mean(0) if len(self.x) else np.zeros(self.x.shape[1], np.float32)

    def difference(self, concept: str) -> np.ndarray:
        """The mean with the concept minus the mean without it, float32 [d]; 0 where one of them does not exist."""
        present, absent = (self.x[mask] for mask in class_masks(self.labels, concept))
        return difference(present, absent) if len(present) and len(absent) else np.zeros(self.x.shape[1], np.float32)


def groups_of(
    points: Sequence[LocalizePoint],
    section_of: Mapping[str, SteerSection],
    studies: Sequence[Study],
    boxed: Sequence[tuple[Study, str]],
) -> list[WritingGroup]:
    """The groups of points that one program writes, and one of the patches at findings.

    Args:
      points: all points.
      section_of: by the name of a section of the prompt, that of the sweep which edits it.
      studies: the studies that are written.
      boxed: studies with a concept that has a box.
    """
    found: dict[tuple[str, str], list[LocalizePoint]] = {}
    for point in points:
        found.setdefault((point.site.tower, point.section), []).append(point)
    groups = [
        WritingGroup(f"{tower}-{name}", tuple(own), section_of[name], tuple(studies))
        for (tower, name), own in found.items()
    ]
    if boxed and ("language", FRONTAL) in found:
        at, concepts = zip(*boxed, strict=True)
        groups.append(WritingGroup("patches", tuple(found["language", FRONTAL]), section_of[FRONTAL], at, concepts))
    return groups


def sweep_of(
    group: WritingGroup, params: Params, cfg: Maira2Config, model_dir: Path, rows: Sequence[GenerationRow], seed: int
) -> Sweep:
    """The sweep of a group.

    Raises:
      UserError: a study has no prompt.
    """
    prompts = Prompts.of(group.studies, model_dir)
    writer = SweepWriter.of(params, cfg, prompts, group.section, seed, rows)
    if group.patches:
        inside = [at_box(*pair, cfg.patches_per_image) for pair in zip(group.studies, group.patches, strict=True)]
        writer = dataclasses.replace(writer, patches=inside)
    return Sweep(group.section, [row.direction for row in rows], writer)


def at_box(study: Study, concept: str, patches: int) -> np.ndarray:
    """Which patches of the frontal image overlap a box of the concept, bool [patches]."""
    side = round(patches**0.5)
    assert study.frontal is not None
    places = patch_boxes(*width_height(study.frontal), (side, side), "crop")  # [patches, 4]
    low, high = places[:, :2], places[:, :2] + places[:, 2:]
    inside = np.zeros(patches, bool)
    for box in study.boxes:
        if box.name == concept:
            end = (box.x + box.width, box.y + box.height)
            inside |= ((low < end) & (high > (box.x, box.y))).all(1)
    return inside


def write_group(folder: Path, sweep: Sweep) -> list[dict[str, Any]]:
    """Writes the reports of a group that are missing, batch by batch, and reads all: lines of `steer.stage`."""
    return list(write_parts(folder, sweep, OFF).records())


def written(
    lines: Iterable[dict[str, Any]], point: LocalizePoint, n_resamples: int, seed: int
) -> tuple[dict[str, WritingScore], Mapping[str, Any]]:
    """By concept how well it is written at a point, and the rates over all concepts."""
    rows = [result_row(*numbered) for numbered in enumerate(lines) if _at(numbered[1], point, WRITTEN)]
    found = summarise(rows, n_resamples, seed)
    scores = {entry["concept"]: WritingScore(entry, entry["strength"]) for entry in found["best"]}
    return scores, found["headline"].get(WRITTEN, {})


def lost(
    lines: Iterable[dict[str, Any]], point: LocalizePoint, concepts: Sequence[str], of_study: Sequence[str] = ()
) -> dict[str, LostShare]:
    """By concept the share of the reports with it that no longer have it when tokens are ablated at a point.

    Args:
      lines: the lines of a group.
      point: the point.
      concepts: the concepts.
      of_study: for each study of the group the only concept that counts; empty: all do.
    """
    own = [line for line in lines if _at(line, point, ABLATED)]
    out = {}
    for concept in concepts:
        counted = [line for n, line in enumerate(own) if not of_study or of_study[n] == concept]
        kept = [
            cached_parse(line["steered"]).concepts[concept]
            for line in counted
            if cached_parse(line["original"]).concepts[concept]
        ]
        out[concept] = LostShare(1 - sum(kept) / len(kept) if kept else None, len(kept))
    return out


def _at(line: dict[str, Any], point: LocalizePoint, method: str) -> bool:
    settings = line["settings"]
    return bool(settings["method"] == method and settings["site"] == point.site.name)

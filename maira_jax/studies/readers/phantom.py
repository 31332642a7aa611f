"""Studies of the phantom: synthetic chest images and reports whose truth is known.

`studies` yields whole studies (images, sections, truth, labels); `arrays` only the images and their
levels, fast. Study i of a seed is always the same, so training and test sets are ranges of indices.
"""

import random
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from maira_jax.errors import UserError
from maira_jax.phantom.world.latents import SLOTS, sample, slot_name, truth
from maira_jax.phantom.world.render import UNITS, places, render
from maira_jax.phantom.world.write import ReportSentence, has_communication, write_sections
from maira_jax.run.config import setting
from maira_jax.studies.concepts import study_labels
from maira_jax.studies.readers.registry import READERS, StudiesSection
from maira_jax.studies.study import Box, LocatedSentence, Study


@READERS.register("phantom")
class PhantomSection(StudiesSection):
    """The phantom: studies that are made when they are read."""

    # Another seed than that of the studies that the shipped model was trained on.
    seed: int = setting(1, "Seed of the phantom's studies.")
    start: int = setting(0, "Index of the first study.", ge=0)
    size: int = setting(UNITS, "Side of the images in pixels.", ge=1)

    def check(self) -> None:
        if self.n is None:
            raise UserError("studies.n is None, but the phantom has no end: say how many studies")

    def load(self) -> list[Study]:
        assert self.n is not None
        return studies(self.start, self.start + self.n, seed=self.seed, size=self.size)

    def stated(self) -> Mapping[str, Mapping[str, frozenset[str]]]:
        small = self.model_copy(update={"size": 8})  # images are not looked at
        return {study.study_id: study.stated for study in small.load()}


class PhantomArrays(NamedTuple):
    """Images of phantom studies and the levels of their slots.

    Attributes:
      images: uint8 [n, size, size].
      prior_images: uint8 [n, size, size]; black without a prior.
      has_prior: bool [n].
      truth: slot name -> int8 [n], the level in the current image (0: absent), see `SLOTS`.
    """

    images: np.ndarray
    prior_images: np.ndarray
    has_prior: np.ndarray
    truth: dict[str, np.ndarray]


def arrays(start: int, stop: int, seed: int = 0, size: int = UNITS) -> PhantomArrays:
    """Draws studies `start` to `stop - 1` without writing reports."""
    latents = sample(start, stop, seed)
    levels = {slot.name: latents.levels[:, column] for column, slot in enumerate(SLOTS)}
    images, priors = render(latents, size), render(latents, size, prior=True)
    return PhantomArrays(images, priors, latents.has_prior, levels)


class _FirstChoice(random.Random):
    """Always the first phrase of a list."""

    def random(self) -> float:
        return 0.0


def studies(start: int, stop: int, seed: int = 0, size: int = UNITS, varied: bool = True) -> list[Study]:
    """Makes studies `start` to `stop - 1`: images, sections, truth, labels, boxes and where each sentence is seen.

    Args:
      start, stop: range of study indices.
      seed: seed of the synthetic data.
      size: side of the images in pixels.
      varied: whether prose differs from study to study; if not, the same truth always gives the same words.
    """
    latents = sample(start, stop, seed)
    images, priors = render(latents, size), render(latents, size, prior=True)
    boxes = places(latents, size)
    out = []
    for i in range(len(latents)):
        rng = random.Random(f"phantom {seed} {start + i}") if varied else _FirstChoice()
        written = write_sections(latents, i, rng)
        facts = truth(latents, i)
        has_prior = bool(latents.has_prior[i])
        out.append(
            Study(
                study_id=f"phantom-{seed}-{start + i:06d}",
                patient_id=f"phantom-{seed}-p{start + i:06d}",
                frontal=images[i],
                prior_frontal=priors[i] if has_prior else None,
                indication=written.indication,
                technique=written.technique,
                comparison=written.comparison,
                prior_report=written.prior_report,
                findings=written.findings,
                truth=facts,
                labels=study_labels(facts, has_prior, has_communication(written.findings)),
                findings_origin="phantom",
                stated=written.stated,
                boxes=tuple(box for found in boxes[i].values() for box in found),
                grounded_findings=tuple(_located(sentence, boxes[i]) for sentence in written.sentences),
            )
        )
    return out


def _located(sentence: ReportSentence, boxes: Mapping[str, tuple[Box, ...]]) -> LocatedSentence:
    present = [finding for finding in sentence.about if finding.status == "present"]
    found = (boxes[slot_name(finding.name, finding.side, finding.zone)] for finding in present)
    return LocatedSentence(sentence.text, tuple(box for part in found for box in part))

"""Where training takes its studies from: the endless phantom, or a finite set that is passed over repeatedly."""

import functools
from collections.abc import Sequence
from typing import Protocol

import ml_collections
import numpy as np

from maira_jax.errors import UserError
from maira_jax.inputs.image import to_grey_square
from maira_jax.phantom.world.latents import SLOTS
from maira_jax.studies import readers, splits
from maira_jax.studies.readers import phantom
from maira_jax.studies.study import Study

_FIRST_HELD_OUT = 1 << 20  # first index of the phantom's held-out studies: training never reaches it


class StudySource(Protocol):
    """A stream of training studies, addressed by index, and a fixed set of held-out ones.

    Attributes:
      held_out: studies that are never trained on.
      labels: names of the labels that the vision phase learns.
    """

    held_out: list[Study]
    labels: tuple[str, ...]

    def studies(self, start: int, stop: int) -> list[Study]:
        """Studies `start` to `stop - 1` of the stream."""

    def images(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Labelled frontal images of the stream.

        Returns:
          Images, uint8 [n, size, size]; their labels, bool [n, labels]; which labels are known, bool [n, labels].
        """


class PhantomStudySource:
    """Studies of the phantom with one seed.

    Its labels are thresholds on the levels of the phantom's slots ("left pleural effusion >= 2").
    """

    def __init__(self, seed: int, size: int, n_held_out: int, varied_wording: bool = True):
        self.seed, self.size, self.varied_wording = seed, size, varied_wording
        self._thresholds = [(slot.name, level) for slot in SLOTS for level in range(1, slot.levels)]
        self.labels = tuple(f"{name} >= {level}" for name, level in self._thresholds)
        self.held_out = phantom.studies(_FIRST_HELD_OUT, _FIRST_HELD_OUT + n_held_out, seed, size)

    def studies(self, start: int, stop: int) -> list[Study]:
        return phantom.studies(start, stop, self.seed, self.size, self.varied_wording)

    def images(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        rendered = phantom.arrays(start, stop, self.seed, self.size)
        labels = np.stack([rendered.truth[name] >= level for name, level in self._thresholds], axis=1)  # [n, labels]
        return rendered.images, labels, np.ones_like(labels)


class FiniteStudySource:
    """A set of studies in a new order for each pass. Its held-out patients are those that the harvest holds out."""

    def __init__(self, studies: Sequence[Study], seed: int, size: int, held_out_fraction: float):
        train: list[Study] = []
        held_out: list[Study] = []
        for study in studies:
            split = splits.split_of(study.patient_id, held_out_fraction, seed)
            (train if split == "train" else held_out).append(study)
        self.held_out = held_out
        self.train = [study for study in train if study.findings]
        if not self.train:
            raise UserError("studies has no study with findings to train on: give more, or hold out fewer")
        self.seed, self.size = seed, size
        self.labels = tuple(sorted({name for study in studies for name in study.labels}))
        self._with_image = [study for study in self.train if study.frontal is not None]

    def _select(self, studies: list[Study], start: int, stop: int) -> list[Study]:
        places = (divmod(index, len(studies)) for index in range(start, stop))
        return [studies[_permutation(self.seed, epoch, len(studies))[offset]] for epoch, offset in places]

    def studies(self, start: int, stop: int) -> list[Study]:
        return self._select(self.train, start, stop)

    def images(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        chosen = self._select(self._with_image, start, stop)
        images = np.stack([to_grey_square(study.frontal, self.size) for study in chosen if study.frontal is not None])
        labels = np.array([[study.labels.get(name, False) for name in self.labels] for study in chosen])
        known = np.array([[name in study.labels for name in self.labels] for study in chosen])
        return images, labels, known


@functools.lru_cache(maxsize=8)
def _permutation(seed: int, epoch: int, n: int) -> np.ndarray:
    """The order of `n` studies in one pass, int64 [n]."""
    return np.random.default_rng((seed, epoch)).permutation(n)


def study_source(
    config: ml_collections.ConfigDict, phantom_seed: int, size: int, n_held_out: int, varied_wording: bool = True
) -> StudySource:
    """The source that the configuration's `studies` section names.

    Args:
      config: whole configuration.
      phantom_seed: seed of the phantom's training studies.
      size: side of the model's images in pixels.
      n_held_out: number of the phantom's held-out studies.
      varied_wording: whether the phantom's reports word the same findings differently from study to study.
    """
    if config.studies.source == "phantom":
        return PhantomStudySource(phantom_seed, size, n_held_out, varied_wording)
    return FiniteStudySource(readers.load_studies(config.studies), config.seed, size, config.harvest.held_out_fraction)

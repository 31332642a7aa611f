"""Where pretraining takes its studies from: the endless phantom, or a finite set that is passed over repeatedly."""

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

_HELD_OUT = 1 << 20  # first index of the phantom's held-out studies: training never gets this far


class Source(Protocol):
    """A stream of training studies, addressed by index, and a fixed set of held-out ones."""

    held_out: list[Study]
    labels: tuple[str, ...]

    def studies(self, start: int, stop: int) -> list[Study]:
        """Studies `start` to `stop - 1` of the stream."""

    def pictures(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Frontal images of the stream: uint8 [n, size, size], labels and which are known, bool [n, labels]."""


class PhantomSource:
    """The phantom with one seed. Its labels are the slots' levels, each as thresholds ("at least moderate")."""

    def __init__(self, seed: int, size: int, n_held_out: int, varied: bool = True):
        self.seed, self.size, self.varied = seed, size, varied
        self.labels = tuple(f"{slot.name} >= {level}" for slot in SLOTS for level in range(1, slot.levels))
        self.held_out = phantom.studies(_HELD_OUT, _HELD_OUT + n_held_out, seed, size)

    def studies(self, start: int, stop: int) -> list[Study]:
        return phantom.studies(start, stop, self.seed, self.size, self.varied)

    def pictures(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        drawn = phantom.arrays(start, stop, self.seed, self.size)
        columns = [drawn.truth[slot.name] >= level for slot in SLOTS for level in range(1, slot.levels)]
        labels = np.stack(columns, axis=1)
        return drawn.images, labels, np.ones_like(labels)


class FiniteSource:
    """A set of studies, permuted anew for every pass. Held-out patients are those that the harvest holds out too."""

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
        self._seen = [study for study in self.train if study.frontal is not None]

    def _at(self, items: list[Study], start: int, stop: int) -> list[Study]:
        chosen = []
        for index in range(start, stop):
            epoch, offset = divmod(index, len(items))
            chosen.append(items[np.random.default_rng((self.seed, epoch)).permutation(len(items))[offset]])
        return chosen

    def studies(self, start: int, stop: int) -> list[Study]:
        return self._at(self.train, start, stop)

    def pictures(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        chosen = self._at(self._seen, start, stop)
        images = np.stack([to_grey_square(study.frontal, self.size) for study in chosen if study.frontal is not None])
        labels = np.array([[study.labels.get(name, False) for name in self.labels] for study in chosen])
        known = np.array([[name in study.labels for name in self.labels] for study in chosen])
        return images, labels, known


def make(config: ml_collections.ConfigDict, size: int, varied: bool = True) -> Source:
    """The source that the config's `studies` section names.

    Args:
      size: side of the model's images in pixels.
      varied: whether the phantom's prose differs from study to study.
    """
    if config.studies.source == "phantom":
        return PhantomSource(config.pretrain.seed, size, config.pretrain.n_held_out, varied)
    return FiniteSource(readers.load_studies(config.studies), config.seed, size, config.harvest.held_out_fraction)

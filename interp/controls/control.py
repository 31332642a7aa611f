"""What a control is: directions in the space of the activations that need no training, or only the encoder's entries.

    @CONTROLS.register("mine")
    class MyControl(Control):
        def axes(self, sae: Sae, sample: np.ndarray, features: np.ndarray, seed: int) -> np.ndarray:
            ...

What features score above a control is what training gave them. The file is imported in `interp.controls`.
"""

import abc
from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from maira_jax.run.registry import Registry
from sae.activations.store import TRAIN, ActivationStore
from sae.autoencoder import Sae

# Train tokens that a control may look at, for principal components and quantiles.
_SAMPLE = 1 << 16


class Control(abc.ABC):
    """Directions that are read like the columns of an encoder.

    Attributes:
      either_sign: whether a direction and its negative are equally meaningful, so that both are candidates where only
        large values count.
      moves_activations: whether it reads other tokens' activations, so that it knows nothing of the text.
    """

    either_sign: ClassVar[bool] = False
    moves_activations: ClassVar[bool] = False

    @abc.abstractmethod
    def axes(self, sae: Sae, sample: np.ndarray, features: np.ndarray, seed: int) -> np.ndarray:
        """One direction for each feature, or all of a kind that has a number of its own.

        Args:
          sae: the autoencoder, of activations that are not normalised.
          sample: activations of train tokens. float32 [n, d_model]
          features: the features that the directions are compared with. int [count]
          seed: seed of all draws.

        Returns:
          float32 [d_model, count], or all that there are.
        """

    def store(self, store: ActivationStore) -> ActivationStore:
        """The activations that it reads."""
        return store


CONTROLS: Registry[type[Control]] = Registry("control")


def bases(sae: Sae, store: ActivationStore, seed: int) -> dict[str, np.ndarray]:
    """`bases_of_sample` for the activations of a store."""
    return bases_of_sample(sae, train_sample(store, seed), seed)


def bases_of_sample(sae: Sae, sample: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """Every control that reads the features' own activations, with as many directions as there are features.

    Args:
      sae: the autoencoder, of activations that are not normalised.
      sample: activations of train tokens. float32 [n, d_model]
      seed: seed of all draws.

    Returns:
      Name -> directions, float32 [d_model, n]; raw dimensions and principal components are as many as they are.
    """
    every = np.arange(sae.n_features)
    made: Mapping[str, Control] = {name: CONTROLS.get(name)() for name in CONTROLS.names()}
    return {
        name: control.axes(sae, sample, every, seed) for name, control in made.items() if not control.moves_activations
    }


def train_sample(store: ActivationStore, seed: int) -> np.ndarray:
    """The activations of random train studies, float32 [n, d_model], 65,536 tokens or a study more."""
    studies = store.studies
    train = np.flatnonzero(np.array(studies["split"].to_pylist()) == TRAIN)
    train = train if len(train) else np.arange(studies.num_rows)  # what is only measured may have no split
    starts, stops = studies["start"].to_numpy(), studies["stop"].to_numpy()
    drawn, rows = [], 0
    for study in np.random.default_rng((seed, len(train))).permutation(train):
        if rows >= _SAMPLE:
            break
        drawn.append((int(starts[study]), int(stops[study])))
        rows += int(stops[study] - starts[study])
    return np.concatenate(store.read_ranges(sorted(drawn))).astype(np.float32)

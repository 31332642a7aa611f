"""The features themselves, on activations that were moved to other tokens."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from interp.controls.control import CONTROLS, Control
from sae.activations.store import ActivationStore
from sae.autoencoder import Sae


@dataclasses.dataclass(frozen=True)
class ShiftedStore(ActivationStore):
    """A store in which every token has the activations of the one half a store further on.

    What lies together stays together, so that features have the bursts that they have in text; and it is read as fast.
    """

    def read_ranges(self, ranges: Sequence[tuple[int, int]]) -> list[np.ndarray]:
        """As of the store, half of it further on."""
        half, n = self.n_tokens // 2, self.n_tokens
        found = []
        for start, stop in ranges:
            begin, end = start + half, stop + half
            whole = begin // n == (end - 1) // n and end % n
            parts = [(begin % n, end % n)] if whole else [(begin % n, n), (0, end % n)]
            found.append(np.concatenate(super().read_ranges(parts)))
        return found


@CONTROLS.register("shuffled activations")
class ShuffledActivations(Control):
    """Encoder columns as they are, on other tokens' activations: any score above chance is a fault of the scoring."""

    moves_activations = True

    def axes(self, sae: Sae, sample: np.ndarray, features: np.ndarray, seed: int) -> np.ndarray:
        return np.asarray(sae.params["W_enc"], np.float32)[:, features]

    def store(self, store: ActivationStore) -> ActivationStore:
        return ShiftedStore(**vars(store))

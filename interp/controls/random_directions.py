"""Directions drawn at random: what the mere number of features gives, since the best of many are chosen."""

import numpy as np

from interp.controls.control import CONTROLS, Control
from sae.autoencoder import Sae

DIRECTIONS = "random directions"


@CONTROLS.register(DIRECTIONS)
class RandomDirections(Control):
    """As many directions as there are features, uniform on the sphere."""

    def axes(self, sae: Sae, sample: np.ndarray, features: np.ndarray, seed: int) -> np.ndarray:
        drawn = np.random.default_rng((seed, sae.d_model)).normal(size=(len(features), sae.d_model))
        return np.ascontiguousarray((drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).T, np.float32)

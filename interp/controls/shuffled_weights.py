"""Encoder columns with their entries shuffled."""

import numpy as np

from interp.controls.control import CONTROLS, Control
from sae.autoencoder import Sae


@CONTROLS.register("shuffled weights")
class ShuffledWeights(Control):
    """Directions of the same entries as the features' encoder columns, which point anywhere."""

    def axes(self, sae: Sae, sample: np.ndarray, features: np.ndarray, seed: int) -> np.ndarray:
        columns = np.asarray(sae.params["W_enc"], np.float32)[:, features]
        return np.random.default_rng((seed, len(features))).permuted(columns, axis=0)

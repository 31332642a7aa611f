"""The dimensions of the activations themselves."""

import numpy as np

from interp.controls.control import CONTROLS, Control
from sae.autoencoder import Sae

RAW = "raw dimensions"


@CONTROLS.register(RAW)
class RawDimensions(Control):
    """Single dimensions of the activations: what needs no directions at all."""

    either_sign = True

    def axes(self, sae: Sae, sample: np.ndarray, features: np.ndarray, seed: int) -> np.ndarray:
        return np.eye(sae.d_model, dtype=np.float32)

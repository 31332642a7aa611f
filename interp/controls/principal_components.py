"""The directions of the largest variance."""

import numpy as np

from interp.controls.control import CONTROLS, Control
from sae.autoencoder import Sae

_MIN_SHARE = 1e-6  # of the largest variance; below it are sums of rounding errors


@CONTROLS.register("principal components")
class PrincipalComponents(Control):
    """Eigenvectors of the train tokens' covariance that have any variance, by falling variance."""

    either_sign = True

    def axes(self, sae: Sae, sample: np.ndarray, features: np.ndarray, seed: int) -> np.ndarray:
        centred = sample - sample.mean(0)
        variance, vectors = np.linalg.eigh((centred.T @ centred).astype(np.float64))  # rising
        varies = variance > _MIN_SHARE * variance[-1]
        return np.ascontiguousarray(vectors[:, varies][:, ::-1], np.float32)

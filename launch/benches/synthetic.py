"""Synthetic activations whose true features are known."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class SyntheticFeatures:
    """Features whose activations are sparse sums of fixed unit directions, plus an offset and a little noise.

    The probabilities of the features fall as 1 / sqrt(rank), scaled so that `active` of them are active on average.
    The strength of an active feature is uniform in [0.5, 1.5].

    Attributes:
      directions: unit direction of each feature, float32 [n_true, d_model].
      probabilities: probability that each feature is active, float64 [n_true].
      offset: mean of the activations without any active feature, float32 [d_model].
    """

    directions: np.ndarray
    probabilities: np.ndarray
    offset: np.ndarray

    @classmethod
    def random(cls, d_model: int, n_true: int, active: float, seed: int) -> "SyntheticFeatures":
        """Features with random directions, of which `active` are active on average."""
        rng = np.random.default_rng((seed, 0))
        directions = rng.normal(size=(n_true, d_model))
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        probabilities = 1 / np.sqrt(np.arange(1, n_true + 1))
        offset = rng.normal(size=d_model) / np.sqrt(d_model)
        return cls(
            directions.astype(np.float32), active * probabilities / probabilities.sum(), offset.astype(np.float32)
        )

    def sample(self, n: int, seed: tuple[int, ...]) -> np.ndarray:
        """Activations of `n` tokens, float32 [n, d_model]."""
        rng = np.random.default_rng(seed)
        shape = (n, len(self.probabilities))
        active = rng.random(shape, np.float32) < self.probabilities
        strengths = active * rng.uniform(0.5, 1.5, shape).astype(np.float32)
        noise = 0.02 * rng.standard_normal((n, len(self.offset)), np.float32)
        return strengths @ self.directions + self.offset + noise

    def recovered(self, w_dec: np.ndarray, alive: np.ndarray) -> tuple[float, float]:
        """How well the features of an autoencoder match the true ones.

        Args:
          w_dec: decoder directions of the autoencoder's features, [n_features, d_model].
          alive: which of them are ever active, bool [n_features]; the others are ignored.

        Returns:
          The share of true features with a cosine above 0.9, and the mean over them of the largest cosine.
        """
        rows = w_dec[alive] / np.linalg.norm(w_dec[alive], axis=1, keepdims=True)
        best = (self.directions @ rows.T).max(1)  # [n_true]
        return float((best > 0.9).mean()), float(best.mean())

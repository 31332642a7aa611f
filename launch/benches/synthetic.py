"""Activations whose true features are known."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class World:
    """Sparse sums of fixed unit directions, about an offset, with a little noise.

    Features differ in how often they are active: frequencies fall as 1 / sqrt(rank), scaled so that `active` of them
    are, on average. An active one's strength is uniform in [0.5, 1.5].

    Attributes:
      directions: unit rows. [n_true, d_model]
      chances: how often each is active. [n_true]
      offset: [d_model]
    """

    directions: np.ndarray
    chances: np.ndarray
    offset: np.ndarray

    @classmethod
    def draw(cls, d_model: int, n_true: int, active: float, seed: int) -> "World":
        """A random world."""
        rng = np.random.default_rng((seed, 0))
        directions = rng.normal(size=(n_true, d_model))
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        chances = 1 / np.sqrt(np.arange(1, n_true + 1))
        offset = rng.normal(size=d_model) / np.sqrt(d_model)
        return cls(directions.astype(np.float32), active * chances / chances.sum(), offset.astype(np.float32))

    def sample(self, n: int, seed: tuple[int, ...]) -> np.ndarray:
        """Activations of `n` tokens. float32 [n, d_model]"""
        rng = np.random.default_rng(seed)
        shape = (n, len(self.chances))
        active = rng.random(shape, np.float32) < self.chances
        strengths = active * rng.uniform(0.5, 1.5, shape).astype(np.float32)
        noise = 0.02 * rng.standard_normal((n, len(self.offset)), np.float32)
        return strengths @ self.directions + self.offset + noise

    def recovered(self, w_dec: np.ndarray, alive: np.ndarray) -> tuple[float, float]:
        """How well the features of an autoencoder match the true ones.

        Args:
          w_dec: [n_features, d_model]
          alive: which of them are ever active; the others do not count. bool [n_features]

        Returns:
          The share of true features with a cosine above 0.9, and the mean over them of the largest cosine.
        """
        rows = w_dec[alive] / np.linalg.norm(w_dec[alive], axis=1, keepdims=True)
        best = (self.directions @ rows.T).max(1)
        return float((best > 0.9).mean()), float(best.mean())

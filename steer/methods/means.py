"""What labelled studies say about the residual stream: directions that need no autoencoder."""

import dataclasses
import json
from collections.abc import Callable

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit

from sae.activations.store import TRAIN, ActivationStore

_ROWS = 8192  # rows of the store in memory at a time
_PENALTY = 1e-2  # of the probe's squared weights, against a mean log-likelihood


def study_sums(
    store: ActivationStore,
    taken: Callable[[np.ndarray], np.ndarray],
    width: int,
    values: Callable[[np.ndarray], np.ndarray],
) -> tuple[np.ndarray, np.ndarray]:
    """Sums over the tokens that count of each training study. Reads the store once, a piece at a time.

    Args:
      taken: from the kinds of a study's tokens (of `Kind`) to whether they count, bool of the same shape.
      width: of the values.
      values: from activations, float32 [tokens, d_model], to what is summed, [tokens, width].

    Returns:
      The sums, [studies, width] in the dtype of the values, and how many tokens each study has, int64 [studies]; 0 for
      studies that are not for training.
    """
    studies, tokens = store.studies, store.tokens
    study, kind = tokens["study"].to_numpy(), tokens["kind"].to_numpy()
    wanted = (np.asarray(studies["split"].to_pylist()) == TRAIN)[study]
    for start, stop in zip(studies["start"].to_pylist(), studies["stop"].to_pylist(), strict=True):
        wanted[start:stop] &= taken(kind[start:stop])
    sums = np.zeros((len(studies), width), values(np.zeros((1, store.d_model), np.float32)).dtype)
    for start in range(0, store.n_tokens, _ROWS):
        here = wanted[start : start + _ROWS]
        if here.any():
            found = values(store.read(start, start + len(here))[here].astype(np.float32))
            of = study[start : start + len(here)][here]
            firsts = np.flatnonzero(np.diff(of, prepend=-1))
            sums[of[firsts]] += np.add.reduceat(found, firsts)
    return sums, np.bincount(study[wanted], minlength=len(studies))


@dataclasses.dataclass(frozen=True)
class StudyMeans:
    """Means over the tokens that a sweep edits.

    Attributes:
      means: float32 [studies, d_model], each study's mean activation; NaN without such tokens.
      labels: each study's concepts.
      residual_norm: mean length of such a token's activation; 0 where there are none.
    """

    means: np.ndarray
    labels: tuple[dict[str, bool], ...]
    residual_norm: float

    @classmethod
    def of(cls, store: ActivationStore, taken: Callable[[np.ndarray], np.ndarray]) -> "StudyMeans":
        """Of the training split of an activation store; `taken` is as in `study_sums`."""
        d = store.d_model
        sums, counts = study_sums(store, taken, d + 1, lambda x: np.c_[x, np.linalg.norm(x, axis=1)].astype(np.float64))
        with np.errstate(invalid="ignore"):
            means = (sums[:, :d] / counts[:, None]).astype(np.float32)
        labels = tuple(json.loads(text) for text in store.studies["labels"].to_pylist())
        return cls(means, labels, float(sums[:, d].sum() / max(counts.sum(), 1)))

    def _groups(self, concept: str) -> tuple[np.ndarray, np.ndarray] | None:
        """The means of studies with a concept and without it, or None if either has no study with such tokens."""
        known = np.isfinite(self.means).all(axis=1)
        has = np.array([bool(labels.get(concept)) for labels in self.labels]) & known
        lacks = np.array([labels.get(concept) is False for labels in self.labels]) & known
        return (self.means[has], self.means[lacks]) if has.any() and lacks.any() else None

    def difference(self, concept: str) -> np.ndarray | None:
        """Mean with the concept minus mean without, float32 [d_model].

        None where the concept is never present, or never absent, in studies with such tokens.
        """
        groups = self._groups(concept)
        return None if groups is None else groups[0].mean(axis=0) - groups[1].mean(axis=0)

    def probe(self, concept: str) -> np.ndarray | None:
        """Weights of a logistic regression that tells studies with the concept from those without, float32 [d_model].

        Both classes weigh the same; the weights have an L2 penalty. None as for `difference`.
        """
        groups = self._groups(concept)
        if groups is None:
            return None
        x = np.concatenate(groups).astype(np.float64)
        x -= x.mean(axis=0)
        x /= np.sqrt((x**2).mean()) + 1e-12  # one number for all dimensions: the direction stays that of the weights
        sign = np.repeat([1.0, -1.0], [len(group) for group in groups])
        share = np.repeat([0.5 / len(group) for group in groups], [len(group) for group in groups])

        def loss(w: np.ndarray) -> tuple[float, np.ndarray]:
            margin = sign * (x @ w[:-1] + w[-1])
            gradient = -share * sign * expit(-margin)
            value = share @ np.logaddexp(0, -margin) + _PENALTY / 2 * w[:-1] @ w[:-1]
            return float(value), np.append(gradient @ x + _PENALTY * w[:-1], gradient.sum())

        found = minimize(loss, np.zeros(x.shape[1] + 1), jac=True, method="L-BFGS-B")
        return found.x[:-1].astype(np.float32)

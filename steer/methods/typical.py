"""What features typically are in studies with a concept, and in those without it."""

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from interp.features.concepts import StudyLabels
from sae.activations.store import ActivationStore
from sae.autoencoder import Sae
from steer.methods.means import study_sums

_SURE = 5.0  # standard errors
_MUCH = 0.2  # of a feature's usual activation where it is active


@dataclasses.dataclass(frozen=True)
class Typical:
    """The training studies' mean activations over the tokens that a sweep edits.

    Attributes:
      activity: float32 [studies, F], of the studies with such tokens.
      labels: of the same studies.
    """

    activity: np.ndarray
    labels: StudyLabels

    @property
    def usual(self) -> np.ndarray:
        """What a feature is where it is active: its mean activation, weighted by itself. float32 [F]"""
        return (self.activity**2).sum(0) / np.maximum(self.activity.sum(0), 1e-12)

    @classmethod
    def of(cls, store: ActivationStore, taken: Callable[[np.ndarray], np.ndarray], sae: Sae) -> "Typical":
        """Of the training split of a store; `taken` is as in `steer.methods.means.study_sums`."""
        sums, counts = study_sums(store, taken, sae.n_features, lambda x: np.asarray(sae.encode(jnp.asarray(x))))
        there = np.flatnonzero(counts)
        rows = store.studies["labels"].to_pylist()
        return cls(
            sums[there] / counts[there, None].astype(np.float32), StudyLabels.from_json([rows[i] for i in there])
        )

    def settings(self, concept: str, feature: int) -> tuple[dict[int, float], dict[int, float]] | None:
        """The features to set, and to what, so that a study is like those with a concept; and like those without it.

        They are `feature`, which stands for the concept, and all others whose activations in the two groups of studies
        differ surely and by much.

        Returns:
          Mean activations by feature, with the concept and without it; None where there are no studies with it, or none
          without it.
        """
        if concept not in self.labels.concepts:
            return None
        column = self.labels.concepts.index(concept)
        value, known = self.labels.value[:, column], self.labels.known[:, column]
        groups = [self.activity[known & value].astype(np.float64), self.activity[known & ~value].astype(np.float64)]
        if not all(map(len, groups)):
            return None
        means = [group.mean(0) for group in groups]  # [F] each
        error = np.sqrt(sum(group.var(0) / len(group) for group in groups))
        difference = np.abs(means[0] - means[1])
        chosen = (difference > _SURE * error) & (difference > _MUCH * self.usual)
        chosen[feature] = True
        with_it, without = ({int(n): float(mean[n]) for n in np.flatnonzero(chosen)} for mean in means)
        return with_it, without

"""Sets features to their class-conditional means: their mean activation in studies with the concept, or without it."""

import dataclasses
from collections.abc import Callable
from typing import Self

import jax.numpy as jnp
import numpy as np

from interp.features.concepts import StudyLabels
from sae.activations.store import ActivationStore
from sae.autoencoder import Sae
from steer.methods.intervention import FeatureClamp, Intervention
from steer.methods.method import METHODS, MethodInputs, SteeringMethod
from steer.methods.study_means import class_masks, study_sums
from steer.selection.target import Target

_MIN_STANDARD_ERRORS = 5.0  # between the two means of a feature that is set: differences by chance are left alone
_MIN_RELATIVE_DIFFERENCE = 0.2  # of the feature's mean where it is active: small differences are left alone


@dataclasses.dataclass(frozen=True)
class StudyFeatures:
    """Each training study's mean feature activations on the tokens that a sweep edits.

    Attributes:
      activity: float32 [studies, F], of the studies with such tokens.
      labels: the labels of the same studies.
    """

    activity: np.ndarray
    labels: StudyLabels

    @classmethod
    def measure(cls, store: ActivationStore, measured: Callable[[np.ndarray], np.ndarray], sae: Sae) -> Self:
        """Measures the training split; see `StoreStatistic.measure`."""
        sums, counts = study_sums(store, measured, sae.n_features, lambda x: np.asarray(sae.encode(jnp.asarray(x))))
        there = np.flatnonzero(counts)
        rows = store.studies["labels"].to_pylist()
        return cls(
            sums[there] / counts[there, None].astype(np.float32), StudyLabels.from_json([rows[i] for i in there])
        )

    @property
    def active_mean(self) -> np.ndarray:
        """Each feature's mean activation weighted by the activation itself: its mean where it is active. float32 [F]"""
        return (self.activity**2).sum(0) / np.maximum(self.activity.sum(0), 1e-12)

    def class_means(self, concept: str, feature: int) -> tuple[dict[int, float], dict[int, float]] | None:
        """The class-conditional means of the features that differ between studies with a concept and without it.

        They are `feature`, the one that the concept is steered by, and all others whose means in the two groups differ
        significantly and by much.

        Returns:
          Mean activations by feature, with the concept and without it; None where no study has the concept, or none
          lacks it.
        """
        groups = [self.activity[mask].astype(np.float64) for mask in class_masks(self.labels, concept)]
        if not all(map(len, groups)):
            return None
        means = [group.mean(0) for group in groups]  # [F] each
        error = np.sqrt(sum(group.var(0) / len(group) for group in groups))  # [F]
        difference = np.abs(means[0] - means[1])  # [F]
        chosen = (difference > _MIN_STANDARD_ERRORS * error) & (
            difference > _MIN_RELATIVE_DIFFERENCE * self.active_mean
        )
        chosen[feature] = True
        present, absent = ({int(n): float(mean[n]) for n in np.flatnonzero(chosen)} for mean in means)
        return present, absent


@METHODS.register("class_means")
class ClassMeans(SteeringMethod):
    """Sets all features that differ between the classes to their means with the concept, or to those without it."""

    statistics = (StudyFeatures,)
    strengths = (-1.0, 1.0)

    def intervention(self, target: Target, inputs: MethodInputs) -> Intervention | None:
        found = inputs.statistic(StudyFeatures).class_means(target.concept, target.feature) if target.concept else None
        if found is None:
            return None
        present, absent = found
        negative = {feature: -mean for feature, mean in absent.items()}  # becomes the mean at a strength of -1
        return Intervention.setting(
            FeatureClamp.of_features(inputs.sae, present),
            inputs.unit_size(target.max_activation),
            FeatureClamp.of_features(inputs.sae, negative),
        )

"""Adds the difference between the mean activation of studies with the concept and of studies without it."""

import numpy as np

from steer.methods.intervention import Intervention
from steer.methods.method import METHODS, MethodInputs, SteeringMethod
from steer.methods.study_means import StudyMeans
from steer.selection.target import Target


@METHODS.register("difference_of_means")
class DifferenceOfMeans(SteeringMethod):
    """Adds the mean of the studies' mean activations with the concept minus the mean without it."""

    statistics = (StudyMeans,)
    of_concept = True

    def intervention(self, target: Target, inputs: MethodInputs) -> Intervention | None:
        groups = inputs.statistic(StudyMeans).groups(target.concept)
        if groups is None:
            return None
        return Intervention.adding(difference(*groups), inputs.unit_size(target.max_activation))


def difference(present: np.ndarray, absent: np.ndarray) -> np.ndarray:
    """The mean of `present` minus the mean of `absent`, float32 [studies, d_model] each -> float32 [d_model]."""
    found: np.ndarray = present.mean(axis=0) - absent.mean(axis=0)
    return found

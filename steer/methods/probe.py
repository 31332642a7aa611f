"""Adds the weights of a linear probe for the concept."""

import numpy as np
import scipy

from steer.methods.intervention import Intervention
from steer.methods.method import METHODS, MethodInputs, SteeringMethod
from steer.methods.study_means import StudyMeans
from steer.selection.target import Target

_PENALTY = 1e-2  # of half the squared weights, against a mean log-likelihood: fitted weights stay finite


@METHODS.register("probe")
class LinearProbe(SteeringMethod):
    """Adds the weights of a logistic regression on the studies' mean activations."""

    statistics = (StudyMeans,)
    of_concept = True

    def intervention(self, target: Target, inputs: MethodInputs) -> Intervention | None:
        groups = inputs.statistic(StudyMeans).groups(target.concept)
        if groups is None:
            return None
        return Intervention.adding(probe(*groups), inputs.unit_size(target.max_activation))


def probe(present: np.ndarray, absent: np.ndarray) -> np.ndarray:
    """Weights of a logistic regression with an L2 penalty that separates two groups of equal total weight.

    Args:
      present, absent: float32 [studies, d_model], the activations of each group.

    Returns:
      float32 [d_model].
    """
    groups = (present, absent)
    x = np.concatenate(groups).astype(np.float64)  # [studies, d_model]
    x -= x.mean(axis=0)
    x /= np.sqrt((x**2).mean()) + 1e-12  # one number for all dimensions: the direction stays that of the weights
    sign = np.repeat([1.0, -1.0], [len(group) for group in groups])  # [studies]
    share = np.repeat([0.5 / len(group) for group in groups], [len(group) for group in groups])  # [studies]

    def loss(w: np.ndarray) -> tuple[float, np.ndarray]:
        margin = sign * (x @ w[:-1] + w[-1])  # [studies]
        gradient = -share * sign * scipy.special.expit(-margin)  # [studies]
        value = share @ np.logaddexp(0, -margin) + _PENALTY / 2 * w[:-1] @ w[:-1]
        return float(value), np.append(gradient @ x + _PENALTY * w[:-1], gradient.sum())

    found = scipy.optimize.minimize(loss, np.zeros(x.shape[1] + 1), jac=True, method="L-BFGS-B")
    weights: np.ndarray = found.x[:-1].astype(np.float32)
    return weights

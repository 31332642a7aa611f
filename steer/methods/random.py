"""Adds a random direction: the control of the methods that add one."""

import numpy as np

from steer.methods.intervention import Intervention
from steer.methods.method import METHODS, MethodInputs, SteeringMethod
from steer.selection.target import Target


@METHODS.register("random")
class AddRandomDirection(SteeringMethod):
    """Adds a direction with normally distributed entries, drawn by the seed and the number of the feature."""

    def intervention(self, target: Target, inputs: MethodInputs) -> Intervention:
        generator = np.random.default_rng([inputs.seed, target.feature])
        vector = generator.standard_normal(inputs.sae.d_model)
        return Intervention.adding(vector, inputs.unit_size(target.max_activation))

"""Adds the decoder rows of all features that detect the target's concept about as well."""

import numpy as np

from steer.methods.intervention import Intervention
from steer.methods.method import METHODS, MethodInputs, SteeringMethod
from steer.selection.target import Target


@METHODS.register("add_several")
class AddSeveralFeatures(SteeringMethod):
    """Adds the sum of the features' decoder rows, each weighted by the feature's largest activation."""

    def intervention(self, target: Target, inputs: MethodInputs) -> Intervention | None:
        if not target.others:
            return None
        members = ((target.feature, target.max_activation), *target.others)
        vector = sum(largest * inputs.decoder_row(feature) for feature, largest in members)
        return Intervention.adding(np.asarray(vector), inputs.unit_size(target.max_activation))

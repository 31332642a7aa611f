"""Adds the decoder row of the target's feature."""

from steer.methods.intervention import Intervention
from steer.methods.method import METHODS, MethodInputs, SteeringMethod
from steer.selection.target import Target


@METHODS.register("add")
class AddFeature(SteeringMethod):
    """Adds the feature's decoder row."""

    def intervention(self, target: Target, inputs: MethodInputs) -> Intervention:
        row = inputs.decoder_row(target.feature)
        return Intervention.adding(row, inputs.unit_size(target.max_activation))

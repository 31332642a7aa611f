"""Removes the residual stream's projection on the decoder row of the target's feature."""

from steer.methods.intervention import FeatureClamp, Intervention
from steer.methods.method import METHODS, MethodInputs, SteeringMethod
from steer.selection.target import Target


@METHODS.register("project")
class ProjectOut(SteeringMethod):
    """Projects the residual stream on the complement of the feature's decoder row."""

    strengths = (-1.0,)

    def intervention(self, target: Target, inputs: MethodInputs) -> Intervention:
        unit_size = inputs.unit_size(target.max_activation)
        direction = Intervention.adding(inputs.decoder_row(target.feature), unit_size).vector
        return Intervention.setting(FeatureClamp.removing(direction), unit_size)

"""Sets the target's feature to a value, whether it is active or not."""

from steer.methods.intervention import FeatureClamp, Intervention
from steer.methods.method import METHODS, MethodInputs, SteeringMethod
from steer.selection.target import Target


@METHODS.register("clamp")
class ClampFeature(SteeringMethod):
    """Sets the feature to strength units."""

    def intervention(self, target: Target, inputs: MethodInputs) -> Intervention:
        unit_size = inputs.unit_size(target.max_activation)
        clamp = FeatureClamp.of_features(inputs.sae, {target.feature: unit_size})
        return Intervention.setting(clamp, unit_size)

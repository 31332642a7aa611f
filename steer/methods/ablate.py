"""Sets the target's feature to 0."""

from steer.methods.intervention import FeatureClamp, Intervention
from steer.methods.method import METHODS, MethodInputs, SteeringMethod
from steer.selection.target import Target


@METHODS.register("ablate")
class AblateFeature(SteeringMethod):
    """Removes the feature's part of the residual stream."""

    strengths = (-1.0,)

    def intervention(self, target: Target, inputs: MethodInputs) -> Intervention:
        clamp = FeatureClamp.of_features(inputs.sae, {target.feature: 0.0})
        return Intervention.setting(clamp, inputs.unit_size(target.max_activation))

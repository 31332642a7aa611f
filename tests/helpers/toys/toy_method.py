"""A steering method: adds the encoder direction of the target's feature."""

import numpy as np

from steer.methods import METHODS, MethodInputs, SteeringMethod
from steer.methods.intervention import Intervention
from steer.selection.target import Target


@METHODS.register("add_encoder")
class AddEncoderDirection(SteeringMethod):
    """Adds the direction that the feature reads instead of the one that it writes."""

    def intervention(self, target: Target, inputs: MethodInputs) -> Intervention:
        column = np.asarray(inputs.sae.params["W_enc"][:, target.feature])  # [d_model]
        return Intervention.adding(column, inputs.unit_size(target.max_activation))

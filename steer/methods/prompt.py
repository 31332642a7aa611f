"""Tells the model in the prompt that there is the concept, or that there is none: the baseline without any edit."""

from steer.methods.intervention import Intervention
from steer.methods.method import METHODS, MethodInputs, SteeringMethod
from steer.selection.target import Target


@METHODS.register("prompt")
class PromptSentence(SteeringMethod):
    """Adds a sentence about the concept to the study's indication."""

    strengths = (-1.0, 1.0)
    of_concept = True

    def intervention(self, target: Target, inputs: MethodInputs) -> Intervention:
        sentences = {1.0: f"There is {target.concept}.", -1.0: f"There is no {target.concept}."}
        return Intervention.prompting(sentences, inputs.sae.d_model)

"""Change of the next token's confidence: how much amplifying a feature changes what the model expects at all.

The confidence is the negative mean log-probability of the most likely tokens: large where the model is sure of one. Its
change, in either direction, says that the feature acts on the output, not on what. After Wang et al., arXiv 2510.03659,
whose rule it is, measured here on a study's own prompt and image.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from steer.selection.rule import SELECTIONS, AmplifiedTokens, SelectionInputs, SelectionRule, per_feature


@SELECTIONS.register("confidence")
class ConfidenceRule(SelectionRule):
    """The absolute change of the confidence in nats, mean over studies; the same for all concepts of a feature."""

    def scores(self, candidates: Mapping[str, Sequence[int]], inputs: SelectionInputs) -> Mapping[str, np.ndarray]:
        return per_feature(candidates, inputs, confidence_change)


def confidence_change(found: AmplifiedTokens) -> np.ndarray:
    """The change for each of n features, float64 [n]: the mean over the places of all studies."""
    change = np.abs(found.confidence.astype(np.float64) - found.unsteered[:, None])  # [studies, n, t]
    return change.swapaxes(1, 2)[found.counted].mean(axis=0)

"""A measured pilot: a few reports are steered by each candidate, and what that did is its score."""

from collections.abc import Mapping, Sequence

import numpy as np

from steer.selection.rule import SELECTIONS, SelectionInputs, SelectionRule


@SELECTIONS.register("pilot")
class PilotRule(SelectionRule):
    """The share of reports on target minus the share off target, on training studies at the best strength."""

    def scores(self, candidates: Mapping[str, Sequence[int]], inputs: SelectionInputs) -> Mapping[str, np.ndarray]:
        targets = [
            inputs.catalogue.candidate(concept, number, {})
            for concept, numbers in candidates.items()
            for number in numbers
        ]
        found = {concept: inputs.unknown for concept in candidates}
        for target, reward in zip(targets, inputs.effects().rewards(targets), strict=True):
            found[target.concept][target.feature] = reward
        return found

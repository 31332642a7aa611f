"""The features that detect a concept best."""

from collections.abc import Mapping, Sequence

import numpy as np

from maira_jax.errors import UserError
from steer.selection.catalogue import FeatureCatalogue
from steer.selection.rule import SELECTIONS, SelectionInputs, SelectionRule


def by_concept(catalogue: FeatureCatalogue) -> list[int]:
    """The best feature of each concept by F1 on held-out studies, best first; each feature once.

    Raises:
      UserError: no concept has a feature that is ever active.
    """
    best = dict.fromkeys(row["feature"] for row in catalogue.concepts)
    found = [number for number in best if catalogue.features[number]["max_activation"] > 0]
    if not found:
        raise UserError(f"{catalogue.source} names no concept with a feature: name some in steer.features")
    return found


@SELECTIONS.register("concept")
class DetectionRule(SelectionRule):
    """F1 of the feature as a detector of the concept on held-out studies."""

    proposes = True

    def scores(self, candidates: Mapping[str, Sequence[int]], inputs: SelectionInputs) -> Mapping[str, np.ndarray]:
        found = {}
        for concept in candidates:
            found[concept] = inputs.unknown
            for number, f1 in inputs.catalogue.detectors(concept).items():
                found[concept][number] = f1
        return found

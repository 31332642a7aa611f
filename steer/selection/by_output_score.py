"""Output score: whether amplifying a feature makes the tokens likely that its own direction stands for.

A feature stands for the tokens that the logit lens (the final norm and the head) reads most strongly in its decoder
row. Where the feature is amplified on a study's own prompt and image, their best rank r, from 0, and their largest
probability p as the next token give (1 - r / V) p for a vocabulary of V tokens. Source: Arad et al., arXiv 2505.20063,
who amplify on a neutral text.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from steer.selection.rule import (
    SELECTIONS,
    AmplifiedTokens,
    SelectionInputs,
    SelectionRule,
    per_feature,
    refuse_outside_language,
)


@SELECTIONS.register("output_score")
class OutputScoreRule(SelectionRule):
    """(1 - r / V) p, mean over studies; the same for all concepts of a feature."""

    def scores(self, candidates: Mapping[str, Sequence[int]], inputs: SelectionInputs) -> Mapping[str, np.ndarray]:
        refuse_outside_language(inputs, "output_score")
        vocabulary = inputs.model.cfg.text.vocab_size
        return per_feature(candidates, inputs, lambda found: output_score(found, vocabulary))


def output_score(found: AmplifiedTokens, vocabulary: int) -> np.ndarray:
    """The score of each of n features, float64 [n]: the mean over the places of all studies."""
    each = (1 - found.rank / vocabulary) * found.probability  # [studies, n, t]
    return each.swapaxes(1, 2)[found.counted].mean(axis=0)

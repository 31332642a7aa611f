"""The choice between the ways to select features."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from steer.selection.by_concept import by_concept
from steer.selection.by_explanation import by_explanation
from steer.selection.catalogue import FeatureCatalogue
from steer.selection.target import Target


def choose(
    catalogue: FeatureCatalogue,
    features: Sequence[int],
    match: str,
    concepts: Sequence[str],
    top: int,
    candidates: int = 1,
    score: Callable[[Sequence[str]], Mapping[str, np.ndarray]] | None = None,
) -> list[Target]:
    """The features to steer: `features` if any are given, else those that match, else the best ones of each concept.

    Of several concepts with the same best feature the one that it detects best counts, unless they are given by name.

    Args:
      catalogue: the features of the autoencoder.
      features: the numbers of features.
      match: a regular expression on explanations, or "".
      concepts: the names of concepts; empty: those that features detect best.
      candidates: features of each concept.
      score: from concepts to a score of every feature, by which they are chosen; None: by F1.
      top: the largest number of features that match, or of concepts; the first ones are kept.

    Raises:
      UserError: a feature or a concept does not exist, or nothing matches.
    """
    if features or match:
        return [catalogue.target(number) for number in features or by_explanation(catalogue, match)[:top]]
    if concepts:
        best = catalogue.best_of(concepts)
    else:
        best = [catalogue.target(number) for number in by_concept(catalogue)[:top]]
    if score is None:
        return [target for first in best for target in catalogue.runners_up(first, candidates)]
    scores = score([target.concept for target in best])
    return [
        catalogue.scored(target.concept, int(number), float(scores[target.concept][number]))
        for target in best
        for number in np.argsort(-scores[target.concept], kind="stable")[:candidates]
    ]

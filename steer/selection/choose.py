"""The choice between the ways to select features."""

from collections.abc import Sequence

from steer.selection.by_concept import by_concept
from steer.selection.by_explanation import by_explanation
from steer.selection.catalogue import FeatureCatalogue
from steer.selection.target import Target


def choose(
    catalogue: FeatureCatalogue, features: Sequence[int], match: str, concepts: Sequence[str], top: int
) -> list[Target]:
    """The features to steer: `features` if any are given, else those that match, else the best ones of `concepts`, else
    the best one of each concept.

    Args:
      catalogue: the features of the autoencoder.
      features: the numbers of features.
      match: a regular expression on explanations, or "".
      concepts: the names of concepts.
      top: the largest number of features that match, or of concepts; the first ones are kept.

    Raises:
      UserError: a feature or a concept does not exist, or nothing matches.
    """
    if concepts and not (features or match):
        return catalogue.best_of(concepts)
    numbers = features or (by_explanation(catalogue, match) if match else by_concept(catalogue))[:top]
    return [catalogue.target(number) for number in numbers]

"""The best feature of each concept."""

from maira_jax.errors import UserError
from steer.selection.catalogue import FeatureCatalogue


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

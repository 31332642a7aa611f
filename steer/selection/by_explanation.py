"""Features whose explanation matches a regular expression."""

import re

from maira_jax.errors import UserError
from steer.selection.catalogue import FeatureCatalogue


def by_explanation(catalogue: FeatureCatalogue, match: str) -> list[int]:
    """The features whose explanation matches `match`, case ignored, by largest activation, largest first.

    Raises:
      UserError: `match` is not a regular expression, or matches no explanation.
    """
    try:
        pattern = re.compile(match, re.IGNORECASE)
    except re.error as error:
        raise UserError(f"steer.match {match!r} is not a regular expression ({error}): fix it") from error
    found = [number for number, row in catalogue.features.items() if pattern.search(row["explanation"] or "")]
    if not found:
        raise UserError(f"steer.match {match!r} matches no feature's explanation: choose other words")
    return sorted(found, key=lambda number: -catalogue.features[number]["max_activation"])

"""Boosts and suppresses features that the user names, all at once."""

import re
from collections.abc import Mapping

import numpy as np

from maira_jax.errors import UserError
from steer.methods.direction import Direction
from steer.methods.intervention import Intervention
from steer.methods.method import MethodInputs
from steer.selection.target import Target

COMBINATION = "combination"


def combination(text: str, targets: Mapping[int, Target], inputs: MethodInputs) -> Direction:
    """Features that are boosted (12) and suppressed (-7) together, each by its own largest activation: "12-7+30".

    Args:
      text: the features; the first one gives the target.
      targets: by the number of the feature, at least these features.
      inputs: with the unit "max_activation", a strength of 1 moves each feature by its largest activation.

    Raises:
      UserError: the text is not a combination.
    """
    parts = members(text)
    vector = np.asarray(sum(sign * targets[n].max_activation * inputs.decoder_row(n) for n, sign in parts))
    others = tuple(targets[number].concept for number, _ in parts[1:] if targets[number].concept)
    intervention = Intervention.adding(vector, inputs.unit_size(float(np.linalg.norm(vector))))
    return Direction(text, COMBINATION, targets[parts[0][0]], intervention, other_concepts=others)


def members(text: str) -> list[tuple[int, float]]:
    """The features of a combination, each with its sign.

    Raises:
      UserError: the text is not a combination.
    """
    if not re.fullmatch(r"\d+([+-]\d+)+", text):
        raise UserError(
            f"steer.combinations holds {text!r}, which is not a combination: write features to boost and to suppress, "
            "like 12+30-7"
        )
    return [(int(number), -1.0 if sign == "-" else 1.0) for sign, number in re.findall(r"([+-]?)(\d+)", text)]

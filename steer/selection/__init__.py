"""Selection: which features a sweep steers. A rule is one file; importing the package registers them in `SELECTIONS`.

A rule of your own is a subclass of `SelectionRule`, registered in `SELECTIONS` by a module that your configuration file
imports.
"""

from steer.selection import (  # noqa: F401  (imported to be registered)
    by_concept,
    by_confidence,
    by_explanation,
    by_gradient,
    by_output_score,
    by_pilot,
)
from steer.selection.rule import SELECTIONS, SelectionInputs, SelectionRule

__all__ = ["SELECTIONS", "SelectionInputs", "SelectionRule"]

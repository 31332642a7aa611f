"""The choice between the ways to select features."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from maira_jax.run.columns import column
from steer.selection.by_concept import by_concept
from steer.selection.by_explanation import by_explanation
from steer.selection.catalogue import FeatureCatalogue
from steer.selection.rule import SELECTIONS, SelectionInputs
from steer.selection.target import Target

# A row of selection.parquet.
SCHEMA = pa.schema(
    [
        column("concept", pa.string(), "the concept"),
        column("feature", pa.int32(), "a candidate for it"),
        column("rule", pa.string(), "of steer.select"),
        column("score", pa.float64(), "by this rule; the largest is best"),
        column("rank", pa.int32(), "by this rule among the concept's candidates, 1 is best"),
        column("chosen", pa.bool_(), "whether the rule chose it, so that it is steered"),
    ]
)


class Selected(NamedTuple):
    """The features to steer, rows of `SCHEMA` for all that were scored, and how many match or were given."""

    targets: list[Target]
    scores: list[dict[str, Any]]
    n_asked_for: int = 0


class SelectSize(NamedTuple):
    """How many features are chosen.

    Attributes:
      top: the largest number of features that match, or of concepts that are not given by name.
      candidates: features that each rule chooses for each concept.
      pool: features that each rule which proposes candidates proposes for each concept.
    """

    top: int
    candidates: int = 1
    pool: int = 8


def choose(
    catalogue: FeatureCatalogue,
    features: Sequence[int],
    match: str,
    concepts: Sequence[str],
    size: SelectSize,
    rules: Sequence[str] = ("concept",),
    inputs: SelectionInputs | None = None,
) -> Selected:
    """The features to steer: `features` if any are given, else those that match, else those of each concept.

    With `features` or `match` a name in `concepts` is what all of them are steered for, in place of the concept that is
    known for each. Of several concepts with the same best feature the one that it detects best counts, unless they are
    given by name. The features of a concept are those that any rule chooses, the first rule's first.

    Args:
      catalogue: the features of the autoencoder.
      features: the numbers of features.
      match: a regular expression on explanations, or "".
      concepts: the names of concepts, with `features` or `match` at most one; empty: those that features detect best.
      size: how many are chosen.
      rules: names in `SELECTIONS`.
      inputs: what rules score features by; not needed where `features` or `match` are given.

    Raises:
      UserError: a feature or a concept does not exist, or nothing matches.
    """
    if features or match:
        numbers = features or by_explanation(catalogue, match)
        found = [catalogue.target(number) for number in (numbers if features else numbers[: size.top])]
        targets = [catalogue.candidate(concept, target.feature, {}) for concept in concepts for target in found]
        return Selected(targets or found, [], len(numbers))
    if concepts:
        names = [target.concept for target in catalogue.best_of(concepts)]
    else:
        names = [catalogue.target(number).concept for number in by_concept(catalogue)[: size.top]]
    assert inputs is not None
    candidates, scores = _scores(names, rules, size, inputs)
    rows = [row for concept in names for row in _rows(concept, candidates[concept], rules, scores, size)]
    chosen: dict[tuple[str, int], dict[str, float]] = {}
    for row in rows:
        if row["chosen"]:
            chosen.setdefault((row["concept"], row["feature"]), {})[row["rule"]] = row["score"]
    targets = [catalogue.candidate(concept, number, by) for (concept, number), by in chosen.items()]
    return Selected(targets, rows)


def _scores(
    concepts: Sequence[str], rules: Sequence[str], size: SelectSize, inputs: SelectionInputs
) -> tuple[dict[str, list[int]], dict[str, Mapping[str, np.ndarray]]]:
    """The candidates of each concept, the first rule's best first, and by rule and concept scores of features, [F]."""
    proposing = [name for name in rules if SELECTIONS.get(name).proposes] or ["concept"]
    nobody: dict[str, Sequence[int]] = {concept: () for concept in concepts}
    found = {name: SELECTIONS.get(name)().scores(nobody, inputs) for name in proposing}
    everything = range(len(inputs.w_dec))
    candidates = {
        concept: list(
            dict.fromkeys(n for name in proposing for n in _ranked(everything, found[name][concept])[: size.pool])
        )
        for concept in concepts
    }
    for name in rules:
        if name not in found:
            found[name] = SELECTIONS.get(name)().scores(candidates, inputs)
    return candidates, found


def _ranked(numbers: Sequence[int], scores: np.ndarray) -> list[int]:
    """Those of some features that have a score, the largest first, those of equal scores in the order given."""
    return sorted((number for number in numbers if np.isfinite(scores[number])), key=lambda number: -scores[number])


def _rows(
    concept: str,
    candidates: Sequence[int],
    rules: Sequence[str],
    scores: Mapping[str, Mapping[str, np.ndarray]],
    size: SelectSize,
) -> list[dict[str, Any]]:
    """Rows of `SCHEMA` for a concept."""
    return [
        {
            "concept": concept,
            "feature": number,
            "rule": rule,
            "score": float(scores[rule][concept][number]),
            "rank": rank,
            "chosen": rank <= size.candidates,
        }
        for rule in rules
        for rank, number in enumerate(_ranked(candidates, scores[rule][concept]), start=1)
    ]

"""Two sets of interpretations of a run side by side: do they say the same, and are the same features told well?"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from interp import sets
from interp.features.relatives import MIN_COSINE, telling_words, weighted_words
from interp.features.summary import rank_correlation, scores_of

_COMPARED = {"name": pa.string(), "explanation": pa.string(), "score": pa.float64(), "detection": pa.float64()}
_NOTHING: dict[str, Any] = dict.fromkeys(_COMPARED)


def compare(workdir: Path, name: str, other: str = sets.OWN_SET) -> tuple[pa.Table, dict[str, Any]]:
    """Two sets of interpretations of a run, feature by feature.

    How far two explanations agree is the cosine of their words, weighted by how rare they are in both sets; the mean
    over features is to be read against that of explanations of different features.

    Args:
      workdir: the run directory.
      name, other: the sets.

    Returns:
      A table with one row per feature that either set explains: `feature`; `name`, `explanation`, `score` and
      `detection` of the first set and the same of the other one under `other_...`, null where there is none; and
      `agreement`, from 0 to 1, null unless both explain it. And a summary: `both`, the number of features that both
      explain; `agreement` and `agreement_shuffled`, the means; `same`, the share that agrees as near-duplicates do;
      `spearman`, rank correlations over features, null of fewer than three: of both detection scores, and of the
      imported score with our detection score of the same explanation.

    Raises:
      UserError: there is no such set.
    """
    first, second = (_indexed(sets.read_set(workdir, each)) for each in (name, other))
    features = sorted(first.keys() | second.keys())
    pairs = [(first.get(feature, _NOTHING), second.get(feature, _NOTHING)) for feature in features]
    n = len(features)
    texts = [pair[side]["explanation"] for side in (0, 1) for pair in pairs]
    words, telling = weighted_words(texts), telling_words(texts)
    both = np.array([all(row["explanation"] for row in pair) for pair in pairs], bool)
    agreement = np.asarray(words[:n].multiply(words[n:]).sum(1)).ravel() if n else np.zeros(0)  # [n]
    left, right = words[:n][both], words[n:][both]
    others = np.asarray(left.multiply(right[np.roll(np.arange(both.sum()), 1)]).sum(1)).ravel()
    columns: dict[str, Any] = {"feature": pa.array(features, pa.int32())}
    for side, prefix in ((0, ""), (1, "other_")):
        for column, kind in _COMPARED.items():
            columns[prefix + column] = pa.array([pair[side][column] for pair in pairs], kind)
    columns["agreement"] = pa.array(agreement, mask=~both)
    table = pa.table(columns)
    found = {
        "both": int(both.sum()),
        "agreement": _mean(agreement[both]),
        "agreement_shuffled": _mean(others),
        "same": _mean(((agreement >= MIN_COSINE) & (telling[:n] == telling[n:]))[both]),
        "spearman": {
            "detection": _correlation(table["detection"], table["other_detection"]),
            "score": _correlation(table["score"], table["detection"]),
        },
    }
    return table, found


def _indexed(table: pa.Table) -> dict[int, dict[str, Any]]:
    """The compared columns by feature, of the features that are explained."""
    there = table.select(["feature", *(name for name in _COMPARED if name in table.column_names)])
    return {row["feature"]: _NOTHING | row for row in there.to_pylist() if row["explanation"]}


def _correlation(first: pa.ChunkedArray, second: pa.ChunkedArray) -> float | None:
    known = pc.and_(pc.is_valid(first), pc.is_valid(second))
    return rank_correlation(scores_of(first.filter(known)), scores_of(second.filter(known)))


def _mean(values: Sequence[float] | np.ndarray) -> float | None:
    return float(np.mean(values)) if len(values) else None

"""The content of summary.json: how many features were explained, how well, and how far above the controls."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import scipy

from interp.exemplars.index_pass.running_index import EDGES
from interp.scorers.bootstrap import percentile_interval
from interp.scorers.statistics import mean_interval

GOOD_SCORE, CHANCE = 0.75, 0.5
GOOD_F1 = 0.8
SHUFFLED_EXPLANATIONS = "shuffled explanations"
_TRUE = ("true_f1", "fact_f1")
_FAILED = "_n_failed"
_DETECTION = ("detection", "detection_random", "detection_hard")  # with all negatives, random ones, hard ones


class JudgeOrigin(NamedTuple):
    """Where explanations and scores come from.

    Attributes:
      judge: name of the judge.
      prompt_version: names of the prompts or rules, separated by spaces.
      usage: what was asked of a language model and spent; empty without one.
    """

    judge: str
    prompt_version: str
    usage: Mapping[str, Any]


def summarise(
    found: Mapping[str, pa.Table], left_out: Mapping[str, str], origin: JudgeOrigin, n_bootstrap: int
) -> dict[str, Any]:
    """Summarises the tables "features", "controls", "concepts" and, if there is one, "statements".

    Every list of scores is described by its count, its mean with a 95 % bootstrap interval over features, its median,
    and the numbers of scores above 0.75 and below 0.5. `above_controls` is the mean score minus that of each control,
    with its interval; shuffled explanations and shuffled activations know nothing of the text: their scores are chance.

    Args:
      found: the tables by name.
      left_out: the concepts that are not in their table, and why.
      origin: where explanations and scores come from.
      n_bootstrap: number of resamples for the intervals.
    """
    table = found["features"]
    # All scorers but detection, whose columns have other names.
    others = [name.removesuffix(_FAILED) for name in table.column_names if name.endswith(_FAILED)]
    controls = _control_scores(table, found["controls"], others)
    reasons = Counter(reason for reason in table["reason"].to_pylist() if reason is not None)
    failed = [n or 0 for name in ("n_failed", *(name + _FAILED for name in others)) for n in table[name].to_pylist()]
    return {
        "judge": origin.judge,
        "prompt_version": origin.prompt_version,
        "cost": origin.usage.get("cost", 0.0),
        "usage": dict(origin.usage),
        "features": table.num_rows,
        "alive": int((np.array(table["density"]) > 0).sum()),
        "scored": table.num_rows - table["detection"].null_count,
        "not_scored": dict(sorted(reasons.items())),
        "examples_failed": sum(failed),
        **{name: described(scores_of(table[name]), n_bootstrap) for name in (*_DETECTION, *others)},
        "by_decile": _mean_columns(table["by_decile"].to_pylist()),
        "controls": {
            control: {
                name: _mean(values) if name in _TRUE else described(values, n_bootstrap)
                for name, values in scores.items()
            }
            for control, scores in controls.items()
        },
        "above_controls": {
            control: {
                name: gain(scores_of(table[name]), scores[name], n_bootstrap)
                for name in ("detection", "detection_hard", *others)
                if name in scores
            }
            for control, scores in controls.items()
        },
        "concepts": _well_detected(found["concepts"], "concept") | {"left_out": dict(left_out)},
        "truth": _truth(table, found["statements"]) if "statements" in found else None,
        "explanation_groups": len({group for group in table["explanation_group"].to_pylist() if group is not None}),
        "histogram_edges": EDGES.tolist(),
    }


def _control_scores(features: pa.Table, controls: pa.Table, others: Sequence[str]) -> dict[str, dict[str, np.ndarray]]:
    """The scores of each control by column: first of shuffled explanations, which are in the features' table."""
    shuffled = {name: scores_of(features[name.replace("detection", "detection_shuffled")]) for name in _DETECTION}
    found = {SHUFFLED_EXPLANATIONS: shuffled}
    for control in sorted(set(controls["control"].to_pylist())):
        part = controls.filter(pc.equal(controls["control"], control))
        found[control] = {name: scores_of(part[name]) for name in (*_DETECTION, *others, *_TRUE)}
    return found


def _truth(table: pa.Table, statements: pa.Table) -> dict[str, Any]:
    """How detection scores rank the features, compared with the truth, and which statements have a feature.

    `spearman` is the rank correlation with `true_f1`, `spearman_facts` that with `fact_f1`.
    """
    rows = [row for row in table.select([*_DETECTION, *_TRUE]).to_pylist() if None not in row.values()]
    ranks: dict[str, Any] = {"features": len(rows)}
    for name, suffix in zip(_TRUE, ("", "_facts"), strict=True):
        true = np.array([row[name] for row in rows])
        ranks[name] = _mean(true)
        for column in _DETECTION:
            key = column.replace("detection", f"spearman{suffix}")
            ranks[key] = rank_correlation(np.array([row[column] for row in rows]), true)
    return ranks | _well_detected(statements, "statement")


def rank_correlation(scores: np.ndarray, true: np.ndarray) -> float | None:
    """Spearman's; None of fewer than three features, and where either has one value alone."""
    if len(scores) < 3 or not np.ptp(scores) or not np.ptp(true):
        return None
    return float(scipy.stats.spearmanr(scores, true)[0])


def _well_detected(table: pa.Table, name: str) -> dict[str, Any]:
    """How many of the concepts or statements in the column `name` have a feature with a good F1, and which."""
    found = [row[name] for row in table.to_pylist() if row["f1"] >= GOOD_F1]
    return {"tested": table.num_rows, "f1_08": len(found), "found": found}


def scores_of(column: pa.ChunkedArray) -> np.ndarray:
    """The values of a column that are not null."""
    return np.array([score for score in column.to_pylist() if score is not None], np.float64)


def described(scores: np.ndarray, n_bootstrap: int) -> dict[str, Any]:
    """Count, mean with a 95 % bootstrap interval over features, median, and counts of good and bad scores."""
    return {
        "scored": len(scores),
        "mean": _mean(scores),
        "interval": mean_interval(scores, n_bootstrap, 0),
        "median": float(np.median(scores)) if len(scores) else None,
        "above_075": int((scores > GOOD_SCORE).sum()),
        "below_05": int((scores < CHANCE).sum()),
    }


def _mean(scores: np.ndarray) -> float | None:
    return float(scores.mean()) if len(scores) else None


def gain(scores: np.ndarray, control: np.ndarray, n_bootstrap: int) -> dict[str, Any]:
    """The mean score minus that of a control, with a 95 % bootstrap interval over both; None without either."""
    if not len(scores) or not len(control):
        return {"difference": None, "interval": None}
    rng = np.random.default_rng(0)
    drawn = [rng.choice(values, (n_bootstrap, len(values))).mean(1) for values in (scores, control)]
    return {"difference": float(scores.mean() - control.mean()), "interval": percentile_interval(drawn[0] - drawn[1])}


def _mean_columns(rows: list[list[float | None] | None]) -> list[float | None]:
    """The mean of each column over the rows that have a number there."""
    columns = zip(*(row for row in rows if row is not None), strict=True)
    kept = [[value for value in column if value is not None] for column in columns]
    return [float(np.mean(values)) if values else None for values in kept]

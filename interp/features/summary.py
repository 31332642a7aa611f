"""The content of summary.json: how many features were explained, how well, and how far above the controls."""

from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy.stats import spearmanr

from interp.exemplars.index import EDGES
from interp.scorers.statistics import mean_interval

GOOD_SCORE, CHANCE = 0.75, 0.5
GOOD_F1 = 0.8
SHUFFLED_EXPLANATIONS = "shuffled explanations"
_TRUE = ("true_f1", "fact_f1")
_FAILED = "_n_failed"
_ENDS = ("", "_random", "_hard")  # of the columns: against all negatives, random ones, hard ones


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

    Every list of scores is given by its count, mean with a 95 % bootstrap interval over features, median, and how many
    are above 0.75 and below 0.5. `above_controls` is the mean detection score less that of each control; of those,
    shuffled explanations and shuffled activations know nothing of the text, so that what they score is chance.
    """
    table, controls, concepts = found["features"], found["controls"], found["concepts"].to_pylist()
    # All scorers but detection, whose columns have other names.
    others = [name.removesuffix(_FAILED) for name in table.column_names if name.endswith(_FAILED)]
    reasons = Counter(reason for reason in table["reason"].to_pylist() if reason is not None)
    detection = _scores(table["detection"])
    names = sorted(set(controls["control"].to_pylist()))
    by_control = {SHUFFLED_EXPLANATIONS: [_scores(table[f"detection_shuffled{end}"]) for end in _ENDS]}
    true = {}
    for control in names:
        part = controls.filter(pc.equal(controls["control"], control))
        by_control[control] = [_scores(part[f"detection{end}"]) for end in _ENDS]
        true[control] = {name: _scores(part[name]) for name in _TRUE}
    return {
        "judge": origin.judge,
        "prompt_version": origin.prompt_version,
        "cost": origin.usage.get("cost", 0.0),
        "usage": dict(origin.usage),
        "features": table.num_rows,
        "alive": int((np.array(table["density"]) > 0).sum()),
        "scored": len(detection),
        "not_scored": dict(sorted(reasons.items())),
        "examples_failed": sum(
            n or 0 for name in ("n_failed", *(name + _FAILED for name in others)) for n in table[name].to_pylist()
        ),
        **{f"detection{end}": _described(_scores(table[f"detection{end}"]), n_bootstrap) for end in _ENDS},
        **{name: _described(_scores(table[name]), n_bootstrap) for name in others},
        "by_decile": _mean_columns(table["by_decile"].to_pylist()),
        "controls": {
            control: {
                f"detection{end}": _described(scores, n_bootstrap)
                for end, scores in zip(_ENDS, by_negative, strict=True)
            }
            | {name: _mean(true[control][name]) for name in _TRUE if control in true}
            for control, by_negative in by_control.items()
        },
        "above_controls": {
            control: float(detection.mean() - by_negative[0].mean()) if len(detection) and len(by_negative[0]) else None
            for control, by_negative in by_control.items()
        },
        "concepts": _found(concepts, "concept") | {"left_out": dict(left_out)},
        "truth": _truth(table, found["statements"]) if "statements" in found else None,
        "explanation_groups": len({group for group in table["explanation_group"].to_pylist() if group is not None}),
        "histogram_edges": EDGES.tolist(),
    }


def _truth(table: pa.Table, recovered: pa.Table) -> dict[str, Any]:
    """How detection scores rank the features, beside the truth, and which facts have a feature.

    `spearman` is with `true_f1`, `spearman_facts` with `fact_f1`.
    """
    scores = [f"detection{end}" for end in _ENDS]
    rows = [row for row in table.select([*scores, *_TRUE]).to_pylist() if None not in row.values()]
    ranks: dict[str, Any] = {"features": len(rows)}
    for name, of in zip(_TRUE, ("", "_facts"), strict=True):
        true = np.array([row[name] for row in rows])
        ranks[name] = _mean(true)
        for end in _ENDS:
            found = [row[f"detection{end}"] for row in rows]
            ranks[f"spearman{of}{end}"] = float(spearmanr(found, true)[0]) if len(rows) > 2 else None
    return ranks | _found(recovered.to_pylist(), "statement")


def _found(rows: list[dict[str, Any]], name: str) -> dict[str, Any]:
    found = [row[name] for row in rows if row["f1"] >= GOOD_F1]
    return {"tested": len(rows), "f1_08": len(found), "found": found}


def _scores(column: pa.ChunkedArray) -> np.ndarray:
    return np.array([score for score in column.to_pylist() if score is not None], np.float64)


def _described(scores: np.ndarray, n_bootstrap: int) -> dict[str, Any]:
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


def _mean_columns(rows: list[list[float | None] | None]) -> list[float | None]:
    """The mean of each place over the rows that have a number there."""
    columns = zip(*(row for row in rows if row is not None), strict=True)
    kept = [[value for value in column if value is not None] for column in columns]
    return [float(np.mean(values)) if values else None for values in kept]

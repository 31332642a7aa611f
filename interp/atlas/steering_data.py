"""Gathers what the atlas shows of one steering sweep: pairs of reports, and rates."""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from interp.atlas.results import is_finished, read_table
from maira_jax.errors import UserError

_MAX_PAIRS = 4  # pairs of original and steered report for each feature and intended effect
_METHOD = "add"  # whose reports are shown for each feature
_OUTCOME = ("eligible", "on_target", "off_target", "no_change", "degenerate", "added", "removed", "changed")
_RATES = ("on_target", "off_target", "no_change", "degenerate")


def steered_features(steer: Path, evaluated: Path, evaluation: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Pairs of reports for each steered feature, and the rates of its concept by strength.

    For each intended effect the pairs are at the strength that evaluation chose (else the largest), of the first
    studies in the file's order in which the concept could be added or removed, successful or not: a sample, not a
    selection.

    Args:
      steer: the sweep's folder.
      evaluated: the folder of its evaluation.
      evaluation: the summary of its evaluation; None where that has not finished.

    Returns:
      "features": feature -> concept, unit, pairs ("examples") and rates; None where the sweep has not finished.
    """
    if not is_finished(steer):
        return None
    lines = [line for line in enumerate(_lines(steer / "generations.jsonl")) if _is_shown(line[1])]
    outcomes = _outcomes(evaluated) if evaluation is not None else {}
    strengths = _strengths(line for _, line in lines) | _best_strengths(evaluation)
    features: dict[str, dict[str, Any]] = {}
    taken: dict[tuple[int, str], int] = defaultdict(int)
    for number, line in lines:
        settings, key = line["settings"], _key(line)
        entry = features.setdefault(
            str(settings["feature"]),
            {"concept": settings["concept"], "unit": settings["unit"], "examples": [], "rates": []},
        )
        outcome = outcomes.get(number)
        possible = outcome is None or outcome["eligible"] or not outcome["intended"]
        if line["strength"] == strengths[key] and possible and taken[key] < _MAX_PAIRS:
            taken[key] += 1
            pair = {name: line[name] for name in ("study_id", "strength", "original", "steered")}
            entry["examples"].append(pair | {"intended": key[1], "outcome": outcome})
    for entry in features.values():
        entry["rates"] = [
            _rate_row(row)
            for row in (evaluation or {"rates": []})["rates"]
            if row["method"] == _METHOD and row["concept"] == entry["concept"]
        ]
    return {"features": features}


def _lines(path: Path) -> Iterable[dict[str, Any]]:
    try:
        with path.open() as file:
            for line in file:
                yield json.loads(line)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): steer again") from error


def _is_shown(line: Mapping[str, Any]) -> bool:
    return line["settings"]["method"] == _METHOD and bool(line["strength"])


def _key(line: Mapping[str, Any]) -> tuple[int, str]:
    """The feature and the intended effect of a generation."""
    return line["settings"]["feature"], "added" if line["strength"] > 0 else "removed"


def _strengths(lines: Iterable[Mapping[str, Any]]) -> dict[tuple[int, str], float]:
    """The largest strength for each feature and intended effect."""
    found: dict[tuple[int, str], float] = {}
    for line in lines:
        found[_key(line)] = max(found.get(_key(line), 0.0), line["strength"], key=abs)
    return found


def _best_strengths(evaluation: Mapping[str, Any] | None) -> dict[tuple[int, str], float]:
    """The strength that evaluation chose for each feature and intended effect."""
    return {
        (entry["feature"], entry["intended"]): entry["strength"]
        for entry in (evaluation or {"best": []})["best"]
        if entry["method"] == _METHOD and entry["strength"] is not None
    }


def _outcomes(evaluated: Path) -> dict[int, dict[str, Any]]:
    """What evaluation found in each generation, by its line number."""
    table = read_table(evaluated / "results.parquet").select(["line", "intended", *_OUTCOME])
    return {row.pop("line"): row for row in table.to_pylist()}


def _rate_row(row: Mapping[str, Any]) -> dict[str, Any]:
    return {"strength": row["strength"]} | {name: row[name] for name in _RATES}


def of_concept(evaluation: Mapping[str, Any] | None, concept: Mapping[str, Any]) -> dict[str, Any] | None:
    """The best strength of the concept's own feature by intended effect, measured on the other half of the studies."""
    if evaluation is None:
        return None
    return {
        entry["intended"]: _rate_row(entry)
        for entry in evaluation["best"]
        if entry["method"] == _METHOD
        and entry["concept"] == concept["concept"]
        and entry["feature"] == concept["feature"]
        and entry["strength"] is not None
    }


def rates(evaluation: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The rates of every method: overall, by strength, and by concept at the best strength."""
    if evaluation is None:
        return None
    return {
        "studies": evaluation["studies"],
        "headline": {method: {name: row[name] for name in _RATES} for method, row in evaluation["headline"].items()},
        "curves": [
            {"method": row["method"]} | _rate_row(row) for row in evaluation["rates"] if row["concept"] == "all"
        ],
        "best": [
            {name: entry[name] for name in ("concept", "method", "intended", "feature")} | _rate_row(entry)
            for entry in evaluation["best"]
            if entry["strength"] is not None
        ],
    }

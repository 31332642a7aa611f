"""What the atlas shows of steering sweeps: pairs of reports, and rates."""

import dataclasses
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from interp.atlas.disclosure import Disclosure
from interp.atlas.gathering.results import json_if_finished, read_table
from maira_jax.errors import UserError

_MAX_PAIRS = 4  # pairs of original and steered report for each feature and intended effect
_METHOD = "add"  # whose reports are shown for each feature
SMALLEST = "smallest_set"  # the method that sets few features, which are listed
_OUTCOME = ("eligible", "on_target", "off_target", "no_change", "degenerate", "added", "removed", "changed")
_RATES = ("on_target", "off_target", "no_change", "degenerate")
_COSTS = ("format_kept", "length", "nll_change", "history")  # besides off_target and degenerate


@dataclasses.dataclass(frozen=True)
class SteeringSweep:
    """One steering sweep and, where it is finished, its evaluation.

    Attributes:
      name: of the sweep.
      features: feature -> concept, unit, pairs of reports ("examples") and rates of the concept by strength.
      evaluation: its summary; None where it has not been evaluated.
      selection: feature -> the scores that rules of selection gave it, by concept.
      sets: for each concept and intended effect the smallest set of features that has it, each with its value.
    """

    name: str
    features: Mapping[int, dict[str, Any]]
    evaluation: Mapping[str, Any] | None
    selection: Mapping[int, list[dict[str, Any]]]
    sets: Sequence[Mapping[str, Any]] = ()

    @classmethod
    def read(cls, workdir: Path, name: str) -> Self:
        """Reads a finished sweep.

        For each intended effect the pairs are at the strength that evaluation chose (else the largest), of the first
        studies in the file's order in which the concept could be added or removed, successful or not: a sample, not a
        selection.
        """
        steer, evaluated = workdir / "steer" / name, workdir / "evaluation" / name
        evaluation = json_if_finished(evaluated / "summary.json")
        lines = [line for line in enumerate(_lines(steer / "generations.jsonl")) if _is_shown(line[1])]
        outcomes = _outcomes(evaluated) if evaluation is not None else {}
        strengths = _strengths(line for _, line in lines) | _best_strengths(evaluation)
        features: dict[int, dict[str, Any]] = {}
        taken: dict[tuple[int, str], int] = defaultdict(int)
        for number, line in lines:
            settings, key = line["settings"], _key(line)
            start = {"concept": settings["concept"], "unit": settings["unit"], "examples": [], "rates": []}
            entry, outcome = features.setdefault(settings["feature"], start), outcomes.get(number)
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
        sets = _smallest_sets(steer / "sets.parquet", evaluation)
        return cls(name, features, evaluation, _selection(steer / "selection.parquet"), sets)

    def of(self, feature: int, disclosure: Disclosure) -> dict[str, Any] | None:
        """What the page of a feature shows; None where it was not steered."""
        entry = self.features.get(feature)
        if entry is None:
            return None
        pairs = [
            disclosure.texts(pair) | {"study_id": disclosure.study(pair["study_id"])} for pair in entry["examples"]
        ]
        return entry | {"examples": pairs if disclosure.studies else []}

    def of_concept(self, concept: Mapping[str, Any]) -> dict[str, Any] | None:
        """By intended effect a feature that was steered for a concept, and its rates at the best strength.

        That is the feature that detects the concept best by `concepts.parquet` where that one was steered; the rates
        are measured on the other half of the studies. None without an evaluation.
        """
        if self.evaluation is None:
            return None
        steered = [
            entry
            for entry in self.evaluation["best"]
            if entry["method"] == _METHOD and entry["concept"] == concept["concept"] and entry["strength"] is not None
        ]
        found: dict[str, Any] = {}
        for entry in sorted(steered, key=lambda entry: entry["feature"] != concept["feature"]):
            found.setdefault(entry["intended"], {"feature": entry["feature"]} | _rate_row(entry))
        return found

    def rates(self) -> dict[str, Any] | None:
        """The rates of every method: overall, by strength, and by concept at the best strength; None without any."""
        evaluation = self.evaluation
        if evaluation is None:
            return None
        return {
            "studies": evaluation["studies"],
            "concepts": sorted({row["concept"] for row in evaluation["rates"]} - {"", "all"}),
            "selection": {
                rule: {name: row[name] for name in ("spearman", "low", "high", "n")}
                for rule, row in evaluation["selection"].items()
            },
            "headline": {
                method: {name: row[name] for name in _RATES} | _costs(row)
                for method, row in evaluation["headline"].items()
            },
            "curves": [
                {"method": row["method"]} | _rate_row(row) for row in evaluation["rates"] if row["concept"] == "all"
            ],
            "best": [
                {name: entry[name] for name in ("concept", "method", "intended", "feature")}
                | _rate_row(entry)
                | _costs(entry)
                for entry in evaluation["best"]
                if entry["strength"] is not None
            ],
        }


def _lines(path: Path) -> Iterable[dict[str, Any]]:
    try:
        with path.open() as file:
            for line in file:
                yield json.loads(line)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): steer again") from error


def _selection(path: Path) -> dict[int, list[dict[str, Any]]]:
    """The scores of each candidate, each with the number of candidates that the rule has ranked for the concept."""
    found: dict[int, list[dict[str, Any]]] = defaultdict(list)
    rows = read_table(path).to_pylist()
    ranked = Counter((row["concept"], row["rule"]) for row in rows)
    for row in rows:
        found[row.pop("feature")].append(row | {"of": ranked[row["concept"], row["rule"]]})
    return found


def _smallest_sets(path: Path, evaluation: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """The smallest sets of a sweep, with what they did in reports; none where it was steered without them."""
    if not path.is_file():
        return []
    found: dict[tuple[str, str], list[tuple[int, float]]] = defaultdict(list)
    for row in read_table(path).to_pylist():
        if row["method"] == SMALLEST:
            found[row["concept"], row["intended"]].append((row["feature"], row["value"]))
    rates = {
        (row["concept"], row["intended"]): _rate_row(row)
        for row in (evaluation or {"best": []})["best"]
        if row["method"] == SMALLEST and row["strength"] is not None
    }
    return [
        {"concept": concept, "intended": intended, "features": features, "rates": rates.get((concept, intended))}
        for (concept, intended), features in found.items()
    ]


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


def _costs(row: Mapping[str, Any]) -> dict[str, float | None]:
    """What steering cost; None for what an earlier version did not measure."""
    return {name: row[name]["rate"] if name in row else None for name in _COSTS}

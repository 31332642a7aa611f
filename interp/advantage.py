"""What features are better at than controls: each measure of a run for every basis, as a table and in sentences."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from interp.controls.random_directions import DIRECTIONS
from interp.medsae.vectors import FEATURES
from maira_jax.run import files

_PROBE_SIZES = (1, 16)
_STEERED = {"on_target": "steering, share of reports on target"}
_MEANINGS = {"detection_hard": "detection, hard negatives alone", "intruder": "intruder test"}


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One measure of features and controls.

    Attributes:
      measure: its name.
      found: basis -> mean or count, and its 95 % interval; features first.
      gained: control -> what features have more, and the 95 % interval of that.
      places: decimal places that are shown.
    """

    measure: str
    found: Mapping[str, tuple[float | None, Sequence[float] | None]]
    gained: Mapping[str, tuple[float | None, Sequence[float] | None]]
    places: int = 2

    def is_better(self, control: str) -> bool:
        """Whether the interval of what features have more is above 0."""
        interval = self.gained[control][1]
        return interval is not None and interval[0] > 0

    def is_worse(self, control: str) -> bool:
        """Whether the interval of what features have more is below 0."""
        interval = self.gained[control][1]
        return interval is not None and interval[1] < 0


Summary: TypeAlias = Mapping[str, Any] | None


def of_run(workdir: Path, sweep: str) -> list[Comparison]:
    """What `comparisons` finds in a run directory, of the stages that have run, and of the sweep of this name."""
    folders = ("label", "faithfulness", f"evaluation/{sweep}")
    paths = [workdir / folder / "summary.json" for folder in folders]
    rest = [files.read_json(path) if path.is_file() else None for path in paths]
    return comparisons(files.read_json(workdir / "interp" / "summary.json"), *rest)


def comparisons(
    interp: Mapping[str, Any], label: Summary = None, faithfulness: Summary = None, evaluation: Summary = None
) -> list[Comparison]:
    """Every measure of features and of random directions in the summaries of the stages of these names."""
    found = [*_coverage(interp), *_scores(interp)]
    found += [] if faithfulness is None else [_faithfulness(faithfulness)]
    found += [] if label is None else _labels(label)
    found += [] if evaluation is None else _steering(evaluation)
    return [each for each in found if each.gained.get(DIRECTIONS, (None, None))[0] is not None]


def _coverage(interp: Mapping[str, Any]) -> Iterator[Comparison]:
    covered = interp["coverage"]
    if covered is None:
        return
    names = (("found", f"concepts found, of {covered['concepts']}", 0), ("f1", "mean F1 of concepts", 2))
    for key, measure, places in names:
        found = {basis: (part[key], part[f"{key}_interval"]) for basis, part in covered["bases"].items()}
        yield Comparison(measure, found, _differences(covered["differences"], lambda part, key=key: part[key]), places)


def _scores(interp: Mapping[str, Any]) -> Iterator[Comparison]:
    names = dict.fromkeys(name for gained in interp["above_controls"].values() for name in gained)
    for name in names:
        parts = {FEATURES: interp} | interp["controls"]
        found = {
            basis: (part[name]["mean"], part[name]["interval"])
            for basis, part in parts.items()
            if isinstance(part.get(name), dict)
        }
        gained = {
            control: (part[name]["difference"], part[name]["interval"])
            for control, part in interp["above_controls"].items()
            if name in part
        }
        yield Comparison(_MEANINGS.get(name, name), found, gained)


def _labels(label: Mapping[str, Any]) -> Iterator[Comparison]:
    probing = label["probing"]
    for k in map(str, _PROBE_SIZES):
        found = {basis: (p[k]["auroc"], p[k]["auroc_interval"]) for basis, p in probing["bases"].items() if k in p}
        gained = {name: part for name, part in probing["differences"].items() if k in part}
        yield Comparison(f"AUROC of {k}-sparse probes", found, _differences(gained, lambda part, k=k: part[k]["auroc"]))
    found = {
        basis: (part["by_rank"]["monosemanticity"]["mean"], part["by_rank"]["intervals"]["monosemanticity"])
        for basis, part in label["bases"].items()
    }
    gained = {name: part for name, part in label["differences"].items() if "monosemanticity" in part["by_rank"]}
    yield Comparison(
        "monosemanticity by rank", found, _differences(gained, lambda part: part["by_rank"]["monosemanticity"])
    )


def _faithfulness(summary: Mapping[str, Any]) -> Comparison:
    found = {basis: (part["mean"], part["interval"]) for basis, part in summary["bases"].items()}
    return Comparison("faithfulness", found, _differences(summary["differences"], lambda part: part))


def _steering(evaluation: Mapping[str, Any]) -> Iterator[Comparison]:
    """What one feature does to reports against a random direction, both at their best strengths."""
    headline, gained = evaluation["headline"], evaluation.get("above_random", {}).get("add", {})
    for name, measure in _STEERED.items():
        if name in gained:
            found = {
                basis: (headline[method][name]["rate"], [headline[method][name][end] for end in ("low", "high")])
                for basis, method in ((FEATURES, "add"), (DIRECTIONS, "random"))
            }
            yield Comparison(measure, found, {DIRECTIONS: (gained[name]["difference"], gained[name]["interval"])})


def _differences(
    differences: Mapping[str, Any], part_of: Any
) -> dict[str, tuple[float | None, Sequence[float] | None]]:
    found = {name.removeprefix(f"{FEATURES} minus "): part_of(part) for name, part in differences.items()}
    return {control: (part["difference"], part["interval"]) for control, part in found.items()}


def rows(found: Sequence[Comparison]) -> list[list[str]]:
    """The table: a head, and a row per measure with the mean and interval of every basis."""
    bases = list(dict.fromkeys(basis for each in found for basis in each.found))
    table = [["", *bases]]
    for each in found:
        cells = (each.found.get(basis, (None, None)) for basis in bases)
        table.append([each.measure, *(_shown(*cell, f".{each.places}f") for cell in cells)])
    return table


def sentences(found: Sequence[Comparison], control: str = DIRECTIONS) -> str:
    """A sentence for each measure, one a line: first what features are better at than a control, then what they are
    worse at, and last where nothing is shown.
    """
    if not found:
        return f"Features were not compared with {control}: no concept was tested, and no feature was scored."
    ordered = sorted(found, key=lambda each: (not each.is_better(control), not each.is_worse(control)))
    return "\n".join(_sentence(each, control) for each in ordered)


def _sentence(each: Comparison, control: str) -> str:
    form = f".{_telling_places(each, control)}f"
    own, other = (_shown(each.found[basis][0], None, form) for basis in (FEATURES, control))
    figures = f"{each.measure}: {own} against {other} ({_shown(*each.gained[control], f'+{form}')})."
    if each.is_better(control):
        return f"Features are better than {control} at {figures}"
    if each.is_worse(control):
        return f"Features are worse than {control} at {figures}"
    return f"Features are not shown to differ from {control} at {figures}"


def _telling_places(each: Comparison, control: str) -> int:
    """As many decimal places as tell the interval of a shown difference from 0, at most two more than the measure's."""
    places, interval = each.places, each.gained[control][1]
    if interval is None or not (each.is_better(control) or each.is_worse(control)):
        return places
    nearest = min(map(abs, interval))
    return next((n for n in (places, places + 1) if round(nearest, n) > 0), places + 2)


def _shown(value: float | None, interval: Sequence[float] | None, form: str) -> str:
    """A figure with its interval: 0.76 [0.75, 0.77]."""
    if value is None:
        return "-"
    ends = "" if interval is None else f" [{', '.join(format(end, form) for end in interval)}]"
    return format(value, form) + ends

"""What the files of a finished stage say, in a few lines for the terminal."""

import itertools
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from ml_collections import ConfigDict

from interp import advantage
from interp.atlas.gathering.steering import SMALLEST
from interp.medsae.comparison import BY_RANK
from interp.sets import SCORED, stage_name
from maira_jax.reports.text import marked_difference
from maira_jax.run import files, storage
from maira_jax.run.stages.stage import MANIFEST
from steer import evaluate, stage
from steer.rates import RANDOM

_N_EXAMPLES = 2
# The measures of an evaluation that are printed, each with its title and format: effects, and what they cost.
_RATES = {
    "on_target": ("on target", ".0%"),
    "off_target": ("off target", ".0%"),
    "no_change": ("no change", ".0%"),
    "degenerate": ("degenerate", ".0%"),
    "format_kept": ("format kept", ".0%"),
    "length": ("length", ".2f"),
    "nll_change": ("NLL", "+.2f"),
    "history": ("history", ".1%"),
}
# The measures of the label stage that are printed, each with its title.
_MEASURES = {
    "monosemanticity": "monosemanticity",
    "entropy_kept": "entropy of correlations",
    "r": "largest correlation",
    "f1": "F1 of one neuron",
}
_PROBE_SIZES = ("1", "16")
# The measures of heat maps that are printed, each with its title.
_PLACES = {"pointing": "centre in a box", "touching": "touches a box", "inside": "share inside", "iou": "IoU"}


def of_export(config: ConfigDict, workdir: Path) -> str:
    """The folders that were written, and the files in each."""
    found: dict[str, list[str]] = {}
    for path in _read(workdir / "export" / MANIFEST)["counts"]:
        folder, _, name = path.rpartition("/")
        found.setdefault(folder, []).append(name)
    return "\n".join(f"{workdir / 'export' / folder}: {', '.join(names)}" for folder, names in found.items())


def of_labels(config: ConfigDict, workdir: Path) -> str:
    """How features and controls compare with the labels and, where images have boxes, with these."""
    if not _read(workdir / "label" / MANIFEST)["counts"]:
        return "no study has a token of label.sections: nothing was measured"
    return measured(_read(workdir / "label" / "summary.json"))


def measured(label: Mapping[str, Any]) -> str:
    """Measures of the summary of the label stage, by basis, and of heat maps where there are boxes, as tables.

    Each measure is given as MedSAE defines it, and by rank, which alone compares features with controls.
    """
    bases, probing = label["bases"], label["probing"]["bases"]
    rows = [["", *bases]]
    by_rank = {basis: part[BY_RANK] for basis, part in bases.items()}
    for name, title in _MEASURES.items():
        rows += [[title, *_figures(bases, name)], [f"{title}, by rank", *_figures(by_rank, name)]]
    for size in _PROBE_SIZES:
        found = [probing[basis].get(size) for basis in bases]
        cells = ["" if part is None else _with_interval(part["auroc"], part["auroc_interval"]) for part in found]
        rows.append([f"AUROC of probes, k = {size}", *cells])
    probed, left_out = len(label["probing"]["concepts"]), len(label["probing"]["left_out"])
    rest = f" (probes: {probed} labels with enough studies)" if left_out else ""
    head = (
        f"Measured against {probed + left_out} labels{rest} of {label['studies']:,} studies of {label['patients']:,} "
        "patients, with 95 % intervals:"
    )
    return "\n".join([head, *_indented(rows), *_places(label["localisation"])])


def _figures(bases: Mapping[str, Mapping[str, Any]], name: str) -> list[str]:
    """A measure of each basis, with its interval."""
    means = [part[name]["mean"] if name in part else part["mean_over_classes"][name] for part in bases.values()]
    intervals = [part["intervals"][name] for part in bases.values()]
    return [_with_interval(*found) for found in zip(means, intervals, strict=True)]


def _places(localised: Mapping[str, Any]) -> list[str]:
    """The lines of the table of heat maps, if any were scored."""
    if not localised:
        return []
    rows = [["", *_PLACES.values()]]
    for name, found in localised["maps"].items():
        rows.append([name, *(_with_interval(found[measure], found["intervals"][measure]) for measure in _PLACES)])
    images = localised["images"]
    labels = "1 label" if len(images) == 1 else f"{len(images)} labels"
    # An image is there once for each label that it has boxes of.
    head = f"Heat maps of {labels}, in {sum(images.values()):,} pairs of a label and an image with boxes of it:"
    return [head, *_indented(rows)]


def _indented(rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"  {line}" for line in table(rows, 1).splitlines()]


def _with_interval(mean: float | None, interval: Sequence[float] | None) -> str:
    if mean is None:
        return "none"
    return f"{mean:.3f}" + ("" if interval is None else f" [{interval[0]:.3f}, {interval[1]:.3f}]")


def of_interpretation(config: ConfigDict, workdir: Path) -> str:
    """Which concepts were not looked for, and what features are better at than random directions, and what not.

    Of an imported set that was scored: how it compares with our own.
    """
    if config.interpret.set:
        return _of_set(_read(workdir / stage_name(config.interpret.set) / SCORED / "summary.json"))
    summary = _read(workdir / "interp" / "summary.json")
    left_out = summary["concepts"]["left_out"]
    by_reason: dict[str, list[str]] = {}
    for name, why in left_out.items():
        by_reason.setdefault(why, []).append(name)
    lines = [f"{', '.join(names)}: {why}" for why, names in by_reason.items()]
    left = "\n  ".join([f"concepts left out: {len(left_out) or 'none'}", *lines])
    return f"{left}\n{advantage.sentences(advantage.comparisons(summary))}"


def _of_set(summary: dict[str, Any]) -> str:
    found, other = summary["comparison"], summary["compared_with"]
    lines = [f"not scored: {n} ({why})" for why, n in summary["not_scored"].items()]
    lines.append(f"explained by {other} as well: {found['both']}")
    if found["agreement"] is not None:
        lines.append(
            f"agreement of the explanations: {found['agreement']:.2f}, of different features "
            f"{found['agreement_shuffled']:.2f}"
        )
    correlation = found["spearman"]["detection"]
    if correlation is not None:
        lines.append(f"rank correlation of the detection scores: {correlation:.2f}")
    return "\n".join(lines)


def of_sweep(config: ConfigDict, workdir: Path) -> str:
    """Two steered reports, of different concepts, with what differs from the unsteered ones."""
    examples: dict[str, str] = {}
    for line in _changed(workdir / stage.folder(config.steer.name)):
        examples.setdefault(line["settings"]["concept"] or line["direction"], _example(line))
        if len(examples) == _N_EXAMPLES:
            break
    return "\n".join(examples.values()) or "no steered report differs from the unsteered one"


def _changed(folder: Path) -> Iterator[dict[str, Any]]:
    """The reports that steering changed; first those of the largest strengths, and last those of random directions."""
    storage.fetch(folder)
    path = folder / stage.GENERATIONS
    largest = max(abs(line["strength"]) for line in _lines(path))
    for random, weaker in itertools.product((False, True), repeat=2):
        for line in _lines(path):
            is_changed = line["strength"] and line["finished"] and line["steered"] != line["original"]
            rank = (line["settings"]["method"] == RANDOM, abs(line["strength"]) < largest)
            if is_changed and rank == (random, weaker):
                yield line


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a sweep, one at a time: there may be more than memory holds."""
    with path.open(encoding="utf-8") as file:
        yield from map(json.loads, file)


def _example(line: dict[str, Any]) -> str:
    settings = line["settings"]
    concept = f" ({settings['concept']})" if settings["concept"] else ""
    return (
        f"study {line['study_id']}, {line['direction']}{concept}, strength {line['strength']:+g}:\n"
        f"  {marked_difference(line['original'], line['steered'])}"
    )


def of_evaluation(config: ConfigDict, workdir: Path) -> str:
    """Effects and costs of each concept at its best strengths, and of each method, random directions included.

    NLL is the change in nats per token under the unsteered model, length that in words, as a factor, history the share
    of words that compare with an earlier study. Then, for each rule by which features were selected, those of its
    choice, and the rank correlation of its scores with effects; and the smallest sets of features.
    """
    folder = workdir / stage.folder(config.steer.name)
    summary = _read(workdir / evaluate.FOLDER / config.steer.name / evaluate.SUMMARY)
    rows = [["method", "concept", "intended", "strength", "reports", *(title for title, _ in _RATES.values())]]
    for row in summary["best"]:
        if row["method"] != RANDOM and row["strength"] is not None and row["on_target"]["n"]:
            rows.append([row["method"], row["concept"], row["intended"], f"{row['strength']:+g}", *_rates(row)])
    for method, rates in summary["headline"].items():
        rows.append([method, "all", "", "best", *_rates(rates)])
    if len(rows) == 1:
        return no_rate(summary)
    history = summary["unsteered"]["history"]["rate"]
    before = f"\nwords of unsteered reports that compare with an earlier study: {history:.1%}" if history else ""
    return table(rows, 3) + before + _of_selection(summary["selection"]) + _of_sets(folder)


def no_rate(summary: Mapping[str, Any]) -> str:
    """Why an evaluation has no rate: what features are steered for is not known, or no report could gain or lose it."""
    if any(row["concept"] not in ("", "all") for row in summary["rates"]):
        return "no report in which a concept could be added or removed"
    return (
        "no steered feature has a concept, so that no change is on target: name what they are steered for, "
        "--config.steer.concepts='pleural effusion' after --features or --match, in launch.steer with another --sweep"
    )


def _of_selection(found: dict[str, dict[str, Any]]) -> str:
    """What the features did that each rule chose first, where there is more than one rule."""
    if len(found) < 2:
        return ""
    rows = [["chosen by", "method", "goes with steering", "reports", *(title for title, _ in _RATES.values())]]
    for rule, own in found.items():
        goes = "-" if own["spearman"] is None else f"{own['spearman']:.2f} ({own['low']:.2f} to {own['high']:.2f})"
        rows += [[rule, method, goes, *_rates(rates)] for method, rates in own["methods"].items()]
    return "\n" + table(rows, 3)


def _of_sets(folder: Path) -> str:
    """The features of each smallest set of a sweep, with the values that they are set to."""
    storage.fetch(folder, (stage.SETS,))
    if not (folder / stage.SETS).is_file():  # steered before there were any
        return ""
    found: dict[tuple[str, str], list[str]] = defaultdict(list)
    for row in pq.read_table(folder / stage.SETS).to_pylist():
        if row["method"] == SMALLEST:
            found[row["concept"], row["intended"]].append(f"{row['feature']} = {row['value']:.2f}")
    lines = [f"{concept} {intended} by {', '.join(features)}" for (concept, intended), features in found.items()]
    return "".join(f"\nsmallest set: {line}" for line in lines)


def table(rows: Sequence[Sequence[str]], n_left: int) -> str:
    """Rows as lines of columns; all but the first `n_left` are aligned to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            f"{cell:{'<' if i < n_left else '>'}{width}}"
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def _rates(row: dict[str, Any]) -> list[str]:
    rates = [(row[name]["rate"], form) for name, (_, form) in _RATES.items()]
    shown = ["-" if rate is None else format(rate, form) for rate, form in rates]
    return [str(row["on_target"]["n"]), *shown]


def _read(path: Path) -> dict[str, Any]:
    storage.fetch(path.parent, (path.name,))
    return files.read_object(path)

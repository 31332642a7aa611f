"""Figures for a publication, each as SVG and PNG, of the figures that the page shows.

They are a column (3.4 inches) or a page (7 inches) wide, in 8-point type, in Okabe and Ito's colours, which
colour-blind readers can distinguish. Text stays text in the SVG files, so that an editor can change it.
"""

import importlib.util
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import scipy

from interp.atlas.gathering.results import json_if_finished, read_table
from maira_jax.run import files

Figure: TypeAlias = Any  # matplotlib's, which need not be installed
FOLDER = "figures"
_FEW = 30  # cases
_COLUMN, _PAGE = 3.4, 7.0  # inches
_BLUE, _ORANGE, _GREEN, _GREY = "#0072B2", "#D55E00", "#009E73", "#999999"
_STYLE: Any = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "atlas",  # the same figure is the same file
    "savefig.dpi": 300,
}
_RATES = (("on_target", "on target", _GREEN), ("off_target", "off target", _ORANGE), ("no_change", "no change", _GREY))


def draw(workdir: Path, sweeps: Sequence[str], folder: Path) -> None:
    """Draws the figures of a run into a folder; where matplotlib is not installed, says so instead.

    Args:
      workdir: the run directory, interpreted.
      sweeps: names of its finished steering sweeps.
      folder: where the files go.
    """
    if importlib.util.find_spec("matplotlib") is None:
        print("atlas: without figures, which need matplotlib: pip install -e '.[figures]'", file=sys.stderr)
        return
    import matplotlib

    folder.mkdir(exist_ok=True)  # of an atlas that was interrupted here
    with matplotlib.rc_context(_STYLE):
        for name, figure in _figures(workdir, sweeps):
            figure.savefig(folder / f"{name}.svg", metadata={"Date": None, "Creator": None})
            figure.savefig(folder / f"{name}.png", metadata={"Software": None})


def _figures(workdir: Path, sweeps: Sequence[str]) -> Iterator[tuple[str, Figure]]:
    features = read_table(workdir / "interp" / "features.parquet")
    summary = files.read_json(workdir / "interp" / "summary.json")
    concepts = read_table(workdir / "interp" / "concepts.parquet").to_pylist()
    own, control = (_numbers(features[name].to_pylist()) for name in ("detection", "detection_shuffled"))
    if len(own):
        yield "detection", _detection(own, control)
        yield "controls", _controls(summary)
    yield "density", _density(_numbers(features["density"].to_pylist()))
    if concepts:
        yield "concepts", _concepts(concepts)
    for sweep in sweeps:
        evaluation = json_if_finished(workdir / "evaluation" / sweep / "summary.json")
        if evaluation is not None and evaluation["headline"]:
            yield f"steering-{sweep}", _steering(evaluation)


def _numbers(values: Sequence[float | None]) -> np.ndarray:
    return np.array([value for value in values if value is not None], float)


def _new(width: float, height: float, columns: int = 1, rows: int = 1, **shared: Any) -> tuple[Figure, np.ndarray]:
    import matplotlib.figure

    figure = matplotlib.figure.Figure((width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **shared).ravel()


def _detection(own: np.ndarray, control: np.ndarray) -> Figure:
    figure, (axes,) = _new(_COLUMN, 2.2)
    edges = np.linspace(0, 1, 21)
    axes.hist(own, edges, color=_BLUE, label=f"own explanation (n = {len(own):,})")
    axes.hist(control, edges, color="black", histtype="step", label=f"another feature's (n = {len(control):,})")
    axes.axvline(0.5, color=_GREY, linestyle=":", linewidth=0.8)
    axes.set(xlabel="Detection score (balanced accuracy; chance 0.5)", ylabel="Features", xlim=(0, 1))
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1))
    return figure


def _controls(summary: Mapping[str, Any]) -> Figure:
    rows = [("features", summary["detection"])]
    rows += [(name, found["detection"]) for name, found in summary["controls"].items()]
    rows = [(name, found) for name, found in rows if found["mean"] is not None][::-1]
    figure, (axes,) = _new(_COLUMN, 0.7 + 0.25 * len(rows))
    for place, (name, found) in enumerate(rows):
        low, high = found["interval"] or (found["mean"], found["mean"])
        colour = _BLUE if name == "features" else _GREY
        axes.plot([low, high], [place, place], color=colour, linewidth=1.5)
        axes.plot(found["mean"], place, "o", color=colour, markersize=4)
    axes.set_yticks(range(len(rows)), [f"{name} (n = {found['scored']:,})" for name, found in rows])
    axes.axvline(0.5, color=_GREY, linestyle=":", linewidth=0.8)
    axes.set(xlabel="Mean detection score", ylim=(-0.6, len(rows) - 0.4))
    return figure


def _density(density: np.ndarray) -> Figure:
    figure, (axes,) = _new(_COLUMN, 2.0)
    alive = np.log10(density[density > 0])
    axes.hist(alive, 40, color=_BLUE)
    axes.set(xlabel=f"log$_{{10}}$ density (never active: {len(density) - len(alive):,})", ylabel="Features")
    return figure


def _concepts(concepts: Sequence[Mapping[str, Any]]) -> Figure:
    rows = sorted(concepts, key=lambda row: row["f1"])
    figure, (axes,) = _new(1.4 * _COLUMN, 0.9 + 0.19 * len(rows))
    places = np.arange(len(rows))
    axes.barh(places, [row["f1"] for row in rows], color=_BLUE, height=0.7)
    always = [2 * row["prevalence"] / (1 + row["prevalence"]) for row in rows]
    axes.plot(always, places, "|", color="black", markersize=7, label="every study positive")
    axes.set_yticks(places, [f"{row['concept']} (n = {row['n_positive']:,})" for row in rows])
    axes.set(xlabel="F1 on held-out studies", xlim=(0, 1), ylim=(-0.6, len(rows) - 0.4))
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1))
    return figure


def _interval(found: Mapping[str, Any]) -> tuple[float, float]:
    """The 95 % interval of a rate; of few cases, and where all agree, that of the share (Wilson 1927)."""
    if found["n"] >= _FEW and found["low"] < found["high"]:
        return found["low"], found["high"]
    low, high = scipy.stats.binomtest(round(found["rate"] * found["n"]), found["n"]).proportion_ci(method="wilson")
    return float(low), float(high)


def _steering(evaluation: Mapping[str, Any]) -> Figure:
    methods = list(evaluation["headline"])
    columns = min(len(methods), 4)
    n_rows = -(-len(methods) // columns)
    figure, all_axes = _new(
        max(_PAGE * columns / 4, _COLUMN), 0.5 + 1.5 * n_rows, columns, n_rows, sharex=True, sharey=True
    )
    for axes, method in zip(all_axes, methods, strict=False):
        rows = [row for row in evaluation["rates"] if row["method"] == method and row["concept"] == "all"]
        for name, label, colour in _RATES:
            for side in (-1, 1):  # nothing is measured at strength 0
                found = sorted(
                    (row["strength"], row[name]["rate"], *_interval(row[name]))
                    for row in rows
                    if row["strength"] * side > 0 and row[name]["rate"] is not None
                )
                if found:
                    x, rate, low, high = np.array(found, float).T
                    axes.plot(
                        x, rate, "o-", color=colour, markersize=2.5, linewidth=1, label=label if side > 0 else None
                    )
                    axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.set(title=method.replace("_", " "), ylim=(-0.02, 1.02), xlabel="Strength")
    for axes in all_axes[len(methods) :]:
        axes.set_axis_off()
    lines: dict[str, Any] = {}
    for axes in all_axes:
        handles, labels = axes.get_legend_handles_labels()
        lines |= dict(zip(labels, handles, strict=True))
    figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=3)
    all_axes[0].set_ylabel("Rate")
    return figure

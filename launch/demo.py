"""Runs every stage, from the checkpoint to the atlas, on the phantom or on the studies of --config.

Finished stages are skipped and an interrupted one resumes, so the same command always ends with the same result.
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from ml_collections import ConfigDict

from interp import atlas
from interp import stage as interpret
from interp.features.summary import GOOD_F1
from launch import _main
from maira_jax.checkpoint import convert
from maira_jax.run import files
from sae.activations import harvest
from sae.formats import export
from sae.training import stage as train
from steer import evaluate, sweep

STAGES: tuple[tuple[str, _main.Run], ...] = (
    ("convert", convert.run),
    ("harvest", harvest.run),
    ("train", train.run),
    ("export", export.run),
    ("interpret", interpret.run),
    ("steer", sweep.run),
    ("evaluate", evaluate.run),
    ("atlas", atlas.run),
)
READS = ("seed", "model", "studies", *(name for name, _ in STAGES if name != "convert"), "sae", "judge")


def run(config: ConfigDict, workdir: Path) -> Mapping[str, Any]:
    """All stages in one process; returns nothing to report, since it prints its own summary."""
    for number, (name, run_stage) in enumerate(STAGES, start=1):
        start = time.monotonic()
        result = run_stage(config, workdir)
        _main.report(f"[{number}/{len(STAGES)}] {name} ({time.monotonic() - start:.0f} s)", result)
    print(summary(workdir, config.steer.name))
    return {}


def summary(workdir: Path, sweep: str) -> str:
    """The figures of a finished run, read from the files of its stages and of one sweep."""
    sae = files.read_json(workdir / "sae" / "metrics.json")
    interp = files.read_json(workdir / "interp" / "summary.json")
    arms = files.read_json(workdir / "evaluation" / sweep / "summary.json")["headline"]
    rates = arms["feature"]
    on, off, none = (_percent(rates[name]["rate"]) for name in ("on_target", "off_target", "no_change"))
    controls = ", ".join(f"{arm} {_score(found)}" for arm, found in interp["controls"].items())
    return (
        f"\nSAE: fraction of variance unexplained {sae['fvu']:.3f}, L0 {sae['l0']:.1f}, dead features {sae['dead']}\n"
        f"Features: {interp['scored']} scored, {interp['detection']['above_075']} above 0.75, mean {_score(interp)} "
        f"(controls: {controls}); "
        f"{interp['concepts']['f1_08']} of {interp['concepts']['tested']} concepts found with F1 of 0.8 or more\n"
        f"{_recovered(workdir / 'interp' / 'concepts.parquet', workdir / 'interp' / 'features.parquet')}"
        f"Steering, {rates['on_target']['n']} reports at the strengths that were best on others: "
        f"on target {on}, off target {off}, no change {none}\n"
        f"Atlas: {(workdir / 'atlas' / 'index.html').resolve()}"
    )


def _recovered(concepts: Path, features: Path) -> str:
    """A line for each concept that a feature stands for: its F1, the feature and the feature's name."""
    names = pq.read_table(features, columns=["name"])["name"].to_pylist()
    rows = sorted(pq.read_table(concepts).to_pylist(), key=lambda row: -row["f1"])
    lines = [
        f"  {row['concept']:<31} F1 {row['f1']:.2f}  feature {row['feature']:>5}  {names[row['feature']] or 'no name'}"
        for row in rows
        if row["f1"] >= GOOD_F1
    ]
    return "".join(f"{line}\n" for line in lines)


def _score(found: Mapping[str, Any]) -> str:
    mean = found["detection"]["mean"]
    return "none" if mean is None else f"{mean:.2f}"


def _percent(rate: float | None) -> str:
    return "not measured" if rate is None else f"{rate:.0%}"


if __name__ == "__main__":
    _main.main(run, __doc__ or "", reads=READS)

"""The figures of a whole run, from the autoencoder to the steered reports or the labels, as a text of a few lines."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from interp import advantage
from interp.features.summary import GOOD_F1, SHUFFLED_EXPLANATIONS
from maira_jax.run import files
from steer.stage_words import measured, no_rate, table


def text(workdir: Path, sweep: str) -> str:
    """The figures of a finished run, read from the files of its stages and of the sweep of this name."""
    interp = files.read_json(workdir / "interp" / "summary.json")
    evaluation = files.read_json(workdir / "evaluation" / sweep / "summary.json")
    return (
        f"\n{_autoencoder(workdir / 'sae')}\n"
        f"{_features(interp)}; "
        f"{interp['concepts']['f1_08']} of {interp['concepts']['tested']} concepts found with F1 of 0.8 or more\n"
        f"{_found_concepts(workdir / 'interp', evaluation['best'])}"
        f"{_steering(evaluation)}\n"
        f"{_atlas(workdir)}\n"
        f"{_against_controls(workdir, sweep)}"
    )


def of_images(workdir: Path, control: str) -> str:
    """The figures of a finished run of an image encoder.

    Args:
      workdir: the run directory.
      control: why its figures are those of a control; empty if they are not.
    """
    return (
        f"\n{_autoencoder(workdir / 'sae')}\n{_companions(workdir)}"
        f"{_features(files.read_json(workdir / 'interp' / 'summary.json'))}\n"
        f"{measured(files.read_json(workdir / 'label' / 'summary.json'))}\n"
        + (f"A control, not a result: {control}\n" if control else "")
        + _atlas(workdir)
    )


def _autoencoder(folder: Path) -> str:
    sae, name = files.read_json(folder / "metrics.json"), folder.name.removeprefix("sae").removeprefix("-")
    return (
        f"SAE{f' {name}' if name else ''}, on {sae['tokens']:,} held-out rows: fraction of variance unexplained "
        f"{sae['fvu']:.3f}, L0 {sae['l0']:.1f}, dead features {sae['dead']:,}"
    )


def _companions(workdir: Path) -> str:
    """The lines of the autoencoders that were trained on the same stream."""
    folders = sorted(path.parent for path in workdir.glob("sae-*/metrics.json"))
    return "".join(f"{_autoencoder(folder)}\n" for folder in folders)


def _features(interp: Mapping[str, Any]) -> str:
    return (
        f"Features: {interp['scored']} scored, {interp['detection']['above_075']} above 0.75, "
        f"mean {_mean_score(interp)} (shuffled explanations {_mean_score(interp['controls'][SHUFFLED_EXPLANATIONS])})"
    )


def _against_controls(workdir: Path, sweep: str) -> str:
    """Every measure of features and controls with 95 % intervals, and what features are better at than random ones."""
    found = advantage.of_run(workdir, sweep)
    lines = table(advantage.rows(found), 1).splitlines()
    return "\n".join([*(f"  {line}" for line in lines), advantage.sentences(found)])


def _atlas(workdir: Path) -> str:
    return f"Atlas: {(workdir / 'atlas' / 'index.html').resolve()}"


def _found_concepts(interp: Path, best: Sequence[Mapping[str, Any]]) -> str:
    """What is known of each concept that a feature detects well, line by line: how well, and what steering it did.

    The feature that detects a concept best on training studies stands with its F1 on held-out ones and its name; those
    that were steered for the concept, which may be others, each stand below with the rates of an evaluation's `best`.
    """
    names = pq.read_table(interp / "features.parquet", columns=["name"])["name"].to_pylist()
    rows = sorted(pq.read_table(interp / "concepts.parquet").to_pylist(), key=lambda row: -row["f1"])
    lines = []
    for row in rows:
        if row["f1"] >= GOOD_F1:
            name = names[row["feature"]] or "no name"
            lines.append(f"  {row['concept']:<31} F1 {row['f1']:.2f}  feature {row['feature']:>5}  {name}")
            lines += [
                f"    steered by feature {found['feature']}, {found['intended']}: on target "
                f"{_percent(found['on_target']['rate'])}, off target {_percent(found['off_target']['rate'])}"
                for found in best
                if found["method"] == "add" and found["concept"] == row["concept"] and found["strength"] is not None
            ]
    return "".join(f"{line}\n" for line in lines)


def _steering(evaluation: Mapping[str, Any]) -> str:
    """The rates of the method "add", or of the first one where the sweep does not add features."""
    headline = evaluation["headline"]
    rates = headline["add"] if "add" in headline else next(iter(headline.values()), None)
    if rates is None:
        return f"Steering: {no_rate(evaluation)}"
    on, off, none = (_percent(rates[name]["rate"]) for name in ("on_target", "off_target", "no_change"))
    return (
        f"Steering, {rates['on_target']['n']} reports at the strengths that were best on others: "
        f"on target {on}, off target {off}, no change {none}"
    )


def _mean_score(found: Mapping[str, Any]) -> str:
    mean = found["detection"]["mean"]
    return "none" if mean is None else f"{mean:.2f}"


def _percent(rate: float | None) -> str:
    return "not measured" if rate is None else f"{rate:.0%}"

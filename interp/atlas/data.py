"""Gathers what the atlas shows from the stages' files, as one JSON-like value of bounded size."""

import dataclasses
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from interp.exemplars import exemplar_table
from maira_jax.errors import UserError, first_line
from maira_jax.run import files
from maira_jax.run.progress import progress
from maira_jax.run.stage import MANIFEST

OPTIONAL_STAGES = ("export", "label", "steer", "evaluation")  # of the last two the folder of one sweep
_LEVELS = 100  # activations in the page are whole percents of the feature's largest
_BATCH = 256
# Columns that the page does not show.
_LEFT_OUT = {"judge", "prompt_version", "cost", "accuracy", "kinds", "parent_share"} | {
    f"{name}_interval" for name in ("accuracy", "precision", "recall", "detection_random", "detection_hard", "fuzzing")
}


@dataclasses.dataclass(frozen=True)
class AtlasConfig:
    """The `atlas` section; what the fields mean stands in configs/phantom.py. `sweep` is the steering sweep to show."""

    n_features: int
    n_top: int
    n_decile: int
    n_silent: int
    n_steering: int
    sweep: str

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if field.type is int and getattr(self, field.name) < 0:
                raise UserError(
                    f"atlas.{field.name} is {getattr(self, field.name)}, but must not be negative: change it"
                )


def gather(workdir: Path, cfg: AtlasConfig) -> dict[str, Any]:
    """Everything that the page shows.

    Args:
      workdir: with at least the stages model, activations, sae and interp.
      cfg: bounds.

    Raises:
      UserError: a file is missing or cannot be read.
    """
    table = _table(workdir / "interp" / "features.parquet")
    summary = files.read_json(workdir / "interp" / "summary.json")
    concepts = _table(workdir / "interp" / "concepts.parquet").to_pylist()
    evaluation = _if_finished(workdir, folder("evaluation", cfg), "summary.json")
    steering = _steering(workdir, cfg, evaluation)
    shown = _shown_features(table, concepts, steering, cfg.n_features)
    return {
        "run": _run_facts(workdir, cfg),
        "summary": summary,
        "concepts": [row | {"steering": _concept_steering(evaluation, row)} for row in concepts],
        "statements": _statements(workdir / "interp" / "statements.parquet"),
        "label": _label(workdir),
        "features": _features(table),
        "exemplars": _exemplars(workdir / "interp" / "exemplars.parquet", table, shown, cfg),
        "steering": steering,
        "evaluation": _evaluation(evaluation),
    }


def _table(path: Path) -> pa.Table:
    try:
        return pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(f"{path} cannot be read ({first_line(error)}): interpret again") from error


def folder(stage: str, cfg: "AtlasConfig") -> str:
    """The folder of one of `OPTIONAL_STAGES`."""
    return stage if stage == "export" else f"{stage}/{cfg.sweep}"


def is_finished(workdir: Path, stage: str) -> bool:
    """Whether a stage has written its manifest."""
    return (workdir / stage / MANIFEST).is_file()


def _if_finished(workdir: Path, stage: str, name: str) -> Any:
    return files.read_json(workdir / stage / name) if is_finished(workdir, stage) else None


def _run_facts(workdir: Path, cfg: "AtlasConfig") -> dict[str, Any]:
    """Facts for the head of the page; None where a stage's manifest does not tell."""
    manifests = {name: files.read_json(workdir / name / MANIFEST) for name in ("model", "activations", "sae", "interp")}
    harvest = manifests["activations"]["section"].get("harvest", {})
    studies = manifests["activations"]["section"].get("studies", {})
    metrics = workdir / "sae" / "metrics.json"
    sae = manifests["sae"]["counts"] | (files.read_json(metrics) if metrics.is_file() else {})
    return {
        "model": manifests["model"]["section"].get("checkpoint"),
        "parameters": manifests["model"]["counts"].get("parameters"),
        "site": harvest.get("site"),
        "token_filter": harvest.get("token_filter"),
        "source": studies.get("source"),
        "tokens": manifests["activations"]["counts"].get("tokens"),
        "studies": manifests["activations"]["counts"].get("studies"),
        "studies_held_out": manifests["activations"]["counts"].get("studies_held_out"),
        "sae": {name: sae.get(name) for name in ("n_features", "d_model", "k", "fvu", "l0", "dead", "prefixes")},
        "versions": manifests["interp"].get("versions", {}),
        "device": manifests["interp"].get("device"),
        "finished": manifests["interp"].get("end"),
        "stages": {name: is_finished(workdir, folder(name, cfg)) for name in OPTIONAL_STAGES},
    }


def _statements(path: Path) -> list[dict[str, Any]] | None:
    """What sentences are known to state, with the features that detect it; None where nobody knows."""
    return [_rounded(row) for row in _table(path).to_pylist()] if path.is_file() else None


def _label(workdir: Path) -> dict[str, Any] | None:
    """Figures of features beside raw dimensions, and the features' monosemanticity."""
    summary = _if_finished(workdir, "label", "summary.json")
    if summary is None:
        return None
    neurons = _table(workdir / "label" / "neurons.parquet").select(["basis", "monosemanticity"]).to_pylist()
    bases = {
        basis: {name: _rounded(part[name]) for name in part if name != "classes"}
        for basis, part in summary["bases"].items()
    }
    own = [_rounded(row["monosemanticity"]) for row in neurons if row["basis"] == "features"]
    return {"studies": summary["studies"], "sections": summary["sections"], "bases": bases, "monosemanticity": own}


def _columns(table: pa.Table) -> dict[str, list[Any]]:
    return {name: [_rounded(value) for value in table[name].to_pylist()] for name in table.column_names}


def _features(table: pa.Table) -> dict[str, list[Any]]:
    """The feature table by column, rounded."""
    columns = _columns(table.drop_columns([name for name in table.column_names if name in _LEFT_OUT]))
    columns["sections"] = [{k: v for k, v in shares.items() if v} for shares in columns["sections"]]
    # Most bins are empty: [first bin, counts from there on].
    columns["histogram"] = [_trimmed(counts) for counts in columns["histogram"]]
    return columns


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return value


def _trimmed(counts: list[int]) -> list[Any]:
    filled = [i for i, count in enumerate(counts) if count]
    return [filled[0], counts[filled[0] : filled[-1] + 1]] if filled else [0, []]


def _shown_features(
    table: pa.Table, concepts: Iterable[Mapping[str, Any]], steering: Mapping[str, Any] | None, limit: int
) -> set[int]:
    """The features whose exemplars are in the page: of concepts, steered ones, then by detection score."""
    first = [row["feature"] for row in concepts]
    first += [int(feature) for feature in (steering or {"features": {}})["features"]]
    score = np.array([-1.0 if value is None else value for value in table["detection"].to_pylist()])
    order = dict.fromkeys([*first, *np.argsort(-score, kind="stable").tolist()])
    return set(list(order)[:limit])


# ----------------------------------------------------------------------------------------- exemplars
def _exemplars(path: Path, table: pa.Table, shown: set[int], cfg: AtlasConfig) -> dict[str, Any]:
    """Contexts of the shown features, all from studies that scoring did not see.

    Texts are numbers of a shared token list. A context is
    [kind, decile, section, study, tokens, percents of the feature's largest activation].
    """
    numbers: dict[str, int] = {}
    out: dict[str, list[Any]] = {}
    largest = table["max_activation"].to_pylist()
    for begin in progress(range(0, table.num_rows, _BATCH), unit="batch", desc="atlas"):
        if not any(feature in shown for feature in range(begin, begin + _BATCH)):
            continue
        taken: dict[tuple[int, str, int], int] = defaultdict(int)
        said: set[tuple[Any, ...]] = set()
        for row in exemplar_table.read(path, begin, begin + _BATCH).to_pylist():
            feature, kind, decile = row["feature"], row["kind"], -1 if row["decile"] is None else row["decile"]
            limit = {"top": cfg.n_top, "decile": cfg.n_decile}.get(kind, cfg.n_silent)
            if row["split"] != "train" or feature not in shown or taken[feature, kind, decile] >= limit:
                continue
            text = (feature, kind, *row["tokens"])
            if text in said:  # the same sentence of another study teaches a reader nothing
                continue
            said.add(text)
            taken[feature, kind, decile] += 1
            tokens = [numbers.setdefault(token, len(numbers)) for token in row["tokens"]]
            scale = _LEVELS / (largest[feature] or 1.0)
            percents = [min(int(np.ceil(value * scale)), _LEVELS) for value in row["activations"]]
            out.setdefault(str(feature), []).append(
                [kind, decile, row["section"], row["study_id"], tokens, percents if any(percents) else []]
            )
    return {"tokens": list(numbers), "contexts": out}


# ------------------------------------------------------------------------------------------ steering
def _steering(workdir: Path, cfg: AtlasConfig, evaluation: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Pairs of reports for each steered feature, and the rates of its concept by strength.

    For each intended effect the pairs are at the strength that evaluation chose (else the largest), of the first
    studies in the file's order in which the concept could be added or removed, successful or not: a sample, not a
    selection.
    """
    if not is_finished(workdir, folder("steer", cfg)):
        return None
    outcome = _outcomes(workdir / folder("evaluation", cfg)) if evaluation is not None else {}
    best = {
        (entry["feature"], entry["intended"]): entry["strength"]
        for entry in (evaluation or {"best": []})["best"]
        if entry["method"] == "add" and entry["strength"] is not None
    }
    strongest = _strongest(workdir / folder("steer", cfg) / "generations.jsonl")
    features: dict[str, dict[str, Any]] = {}
    taken: dict[tuple[int, str], int] = defaultdict(int)
    for number, line in enumerate(_lines(workdir / folder("steer", cfg) / "generations.jsonl")):
        settings, strength = line["settings"], line["strength"]
        if settings["method"] != "add" or not strength:
            continue
        feature, intended = settings["feature"], "added" if strength > 0 else "removed"
        entry = features.setdefault(
            str(feature),
            {"concept": settings["concept"], "unit": settings["unit"], "examples": [], "rates": []},
        )
        row = outcome.get(number)
        wanted = best.get((feature, intended), strongest[feature, intended])
        if (
            strength != wanted
            or (row and row["intended"] and not row["eligible"])
            or taken[feature, intended] >= cfg.n_steering
        ):
            continue
        taken[feature, intended] += 1
        entry["examples"].append(
            {"study": line["study"], "strength": strength, "intended": intended}
            | {"original": line["original"], "steered": line["steered"], "outcome": row}
        )
    for entry in features.values():
        entry["rates"] = [
            _rate_row(row)
            for row in (evaluation or {"rates": []})["rates"]
            if row["method"] == "add" and row["concept"] == entry["concept"]
        ]
    return {"features": features}


def _lines(path: Path) -> Iterable[dict[str, Any]]:
    try:
        with path.open() as file:
            for line in file:
                yield json.loads(line)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): steer again") from error


def _strongest(path: Path) -> dict[tuple[int, str], float]:
    found: dict[tuple[int, str], float] = {}
    for line in _lines(path):
        if line["settings"]["method"] == "add" and line["strength"]:
            key = (line["settings"]["feature"], "added" if line["strength"] > 0 else "removed")
            found[key] = max(found.get(key, 0.0), line["strength"], key=abs)
    return found


def _outcomes(directory: Path) -> dict[int, dict[str, Any]]:
    names = [
        "intended",
        "eligible",
        "on_target",
        "off_target",
        "no_change",
        "degenerate",
        "added",
        "removed",
        "changed",
    ]
    table = _table(directory / "results.parquet").select(["line", *names])
    return {row.pop("line"): row for row in table.to_pylist()}


_RATES = ("on_target", "off_target", "no_change", "degenerate")


def _rate_row(row: Mapping[str, Any]) -> dict[str, Any]:
    return {"strength": row["strength"]} | {name: row[name] for name in _RATES}


def _concept_steering(evaluation: Mapping[str, Any] | None, concept: Mapping[str, Any]) -> dict[str, Any] | None:
    """The best strength of the concept's own feature by intended effect, measured on the other half of the studies."""
    if evaluation is None:
        return None
    return {
        entry["intended"]: _rate_row(entry)
        for entry in evaluation["best"]
        if entry["method"] == "add"
        and entry["concept"] == concept["concept"]
        and entry["feature"] == concept["feature"]
        and entry["strength"] is not None
    }


def _evaluation(evaluation: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if evaluation is None:
        return None
    return {
        "studies": evaluation["studies"],
        "headline": {
            method: {name: rates[name] for name in _RATES} for method, rates in evaluation["headline"].items()
        },
        "curves": [
            {"method": row["method"]} | _rate_row(row) for row in evaluation["rates"] if row["concept"] == "all"
        ],
        "best": [
            {name: entry[name] for name in ("concept", "method", "intended", "feature")} | _rate_row(entry)
            for entry in evaluation["best"]
            if entry["strength"] is not None
        ],
    }

"""Gathers what the atlas shows from the stages' files, as one JSON-like value of bounded size."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np
import pyarrow as pa

from interp.atlas import image_data, steering_data
from interp.atlas.results import is_finished, json_if_finished, optional_folders, read_table
from interp.exemplars import exemplar_table
from interp.exemplars.corpus import is_of_images
from maira_jax.run import files
from maira_jax.run.progress import progress
from maira_jax.run.stage import MANIFEST
from sae.activations.store import TRAIN, source_of

# These bound the size of the page: with them, 16,384 features make a file that a browser still opens at once.
_MAX_FEATURES = 4096  # features with exemplars; all are in the list
_MAX_TOP = 6  # strongest contexts of a feature
_MAX_PER_DECILE = 1  # contexts of a feature from each activation decile
_MAX_NON_ACTIVATING = 3  # contexts of a feature of each non-activating kind
_LEVELS = 100  # activations in the page are whole percents of the feature's largest
_BATCH = 256  # features whose exemplars are read together
# Columns that the page does not show.
_NOT_SHOWN = {"judge", "prompt_version", "cost", "accuracy", "parent_share"} | {
    f"{name}_interval" for name in ("accuracy", "precision", "recall", "detection_random", "detection_hard", "fuzzing")
}


def gather(config: ml_collections.ConfigDict, workdir: Path) -> dict[str, Any]:
    """Everything that the page shows.

    Args:
      config: names the steering sweep to show, and the studies whose images are shown.
      workdir: run directory with at least the stages activations, sae and interp, and model for features of text.

    Raises:
      UserError: a file is missing or cannot be read, or a study is not among `config.studies`.
    """
    folders = {stage: workdir / folder for stage, folder in optional_folders(config.steer.name).items()}
    table = read_table(workdir / "interp" / "features.parquet")
    concepts = read_table(workdir / "interp" / "concepts.parquet").to_pylist()
    evaluation = json_if_finished(folders["evaluation"] / "summary.json")
    steering = steering_data.steered_features(folders["steer"], folders["evaluation"], evaluation)
    shown = _shown_features(table, concepts, steering)
    run, exemplars = _run_facts(workdir, folders), workdir / "interp" / "exemplars.parquet"
    images: dict[str, Any] = {}
    if run["encoder"]:
        pictures = image_data.Pictures(config, workdir / "activations")
        contexts = image_data.exemplars(exemplars, table, shown, pictures)
        similar = image_data.similar(folders["similar"], pictures)
        images = {"pictures": pictures.found, "no_pictures": pictures.reason, "similar": similar}
    else:
        contexts = _exemplars(exemplars, table, frozenset(shown))
    return {
        "run": run,
        "summary": files.read_json(workdir / "interp" / "summary.json"),
        "concepts": [row | {"steering": steering_data.of_concept(evaluation, row)} for row in concepts],
        "statements": _statements(workdir / "interp" / "statements.parquet"),
        "label": _label(folders["label"]),
        "features": _features(table),
        "exemplars": contexts,
        "steering": steering,
        "evaluation": steering_data.rates(evaluation),
    } | images


def _run_facts(workdir: Path, folders: Mapping[str, Path]) -> dict[str, Any]:
    """Facts for the head of the page; None where a stage's manifest does not tell."""
    source = source_of(workdir / "activations")
    names = ("activations", "sae", "interp") if is_of_images(source) else ("model", "activations", "sae", "interp")
    manifests = {name: files.read_json(workdir / name / MANIFEST) for name in names}
    activations, counts = manifests["activations"]["section"], manifests["activations"]["counts"]
    harvest, studies = activations.get("harvest", {}), activations.get("studies", {})
    metrics = workdir / "sae" / "metrics.json"
    sae = manifests["sae"]["counts"] | (files.read_json(metrics) if metrics.is_file() else {})
    if is_of_images(source):
        encoder = {"name": source.get("encoder", "arrays")} | {n: source.get(n) for n in ("weights", "rows", "grid")}
        read = {"model": encoder["name"], "parameters": None, "site": encoder["rows"] or "rows", "encoder": encoder}
    else:
        model = manifests["model"]
        read = {"model": model["section"].get("checkpoint"), "parameters": model["counts"].get("parameters")}
        read |= {"site": harvest.get("site"), "encoder": None}
    return read | {
        "token_filter": harvest.get("token_filter"),
        "source": studies.get("source"),
        **{name: counts.get(name) for name in ("tokens", "studies", "studies_held_out")},
        "sae": {name: sae.get(name) for name in ("n_features", "d_model", "k", "fvu", "l0", "dead", "prefixes")},
        "versions": manifests["interp"].get("versions", {}),
        "device": manifests["interp"].get("device"),
        "finished": manifests["interp"].get("end"),
        "stages": {stage: is_finished(folder) for stage, folder in folders.items()},
    }


def _statements(path: Path) -> list[dict[str, Any]] | None:
    """What sentences are known to state, with the features that detect it; None where that is not known."""
    return [_rounded(row) for row in read_table(path).to_pylist()] if path.is_file() else None


def _label(folder: Path) -> dict[str, Any] | None:
    """MedSAE's figures of features and of raw dimensions, and each feature's monosemanticity and correlations."""
    summary = json_if_finished(folder / "summary.json")
    if summary is None:
        return None
    neurons = read_table(folder / "neurons.parquet").select(["basis", "monosemanticity", "correlation"]).to_pylist()
    own = [row for row in neurons if row["basis"] == "features"]
    bases = {basis: _rounded(part) for basis, part in summary["bases"].items()}
    found = {"studies": summary["studies"], "sections": summary["sections"], "bases": bases}
    return found | {name: [_rounded(row[name]) for row in own] for name in ("monosemanticity", "correlation")}


def _features(table: pa.Table) -> dict[str, list[Any]]:
    """The feature table by column, rounded."""
    names = [name for name in table.column_names if name not in _NOT_SHOWN]
    columns = {name: [_rounded(value) for value in table[name].to_pylist()] for name in names}
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
    table: pa.Table, concepts: Iterable[Mapping[str, Any]], steering: Mapping[str, Any] | None
) -> list[int]:
    """The features whose exemplars are in the page: those of concepts, steered ones, then by detection score."""
    first = [row["feature"] for row in concepts]
    first += [int(feature) for feature in (steering or {"features": {}})["features"]]
    score = np.array([-1.0 if value is None else value for value in table["detection"].to_pylist()])
    order = dict.fromkeys([*first, *np.argsort(-score, kind="stable").tolist()])
    return list(order)[:_MAX_FEATURES]


def _exemplars(path: Path, table: pa.Table, shown: frozenset[int]) -> dict[str, Any]:
    """Contexts of the shown features, all from studies that scoring did not see.

    Returns:
      "tokens", the texts of all tokens, and "contexts", which refer to them by number; a context is
      [kind, decile, section, study, tokens, percents of the feature's largest activation].
    """
    numbers: dict[str, int] = {}
    contexts: dict[str, list[Any]] = {}
    largest = table["max_activation"].to_pylist()
    for begin in progress(range(0, table.num_rows, _BATCH), unit="batch", desc="atlas"):
        if not any(feature in shown for feature in range(begin, begin + _BATCH)):
            continue
        for row in _distinct(exemplar_table.read(path, begin, begin + _BATCH).to_pylist(), shown):
            tokens = [numbers.setdefault(token, len(numbers)) for token in row["tokens"]]
            scale = _LEVELS / (largest[row["feature"]] or 1.0)
            percents = [min(int(np.ceil(value * scale)), _LEVELS) for value in row["activations"]]
            decile = -1 if row["decile"] is None else row["decile"]
            contexts.setdefault(str(row["feature"]), []).append(
                [row["kind"], decile, row["section"], row["study_id"], tokens, percents if any(percents) else []]
            )
    return {"tokens": list(numbers), "contexts": contexts}


def _distinct(rows: Iterable[Mapping[str, Any]], shown: frozenset[int]) -> Iterable[Mapping[str, Any]]:
    """The rows of exemplars.parquet that the page shows: those of train studies, each sentence once."""
    taken: dict[tuple[int, str, int | None], int] = defaultdict(int)
    sentences: set[tuple[Any, ...]] = set()
    for row in rows:
        group, sentence = (row["feature"], row["kind"], row["decile"]), (row["feature"], row["kind"], *row["tokens"])
        limit = {"top": _MAX_TOP, "decile": _MAX_PER_DECILE}.get(row["kind"], _MAX_NON_ACTIVATING)
        if row["split"] != TRAIN or row["feature"] not in shown or taken[group] >= limit or sentence in sentences:
            continue
        sentences.add(sentence)
        taken[group] += 1
        yield row

"""The explanations of an imported set, put to the same tests as our own on the same contexts, and compared with them.

`WORKDIR/interpretations/NAME/scored` holds `features.parquet` (of the set's features the columns of our own that come
from a judge), `comparison.parquet` (per feature both sets side by side) and `summary.json`.
"""

import contextlib
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from interp import sets
from interp.config import InterpretSection
from interp.exemplar_batches import ExemplarBatches, Records
from interp.exemplars.corpus import is_of_images
from interp.explainers.chat_model import ChatModel
from interp.features.summary import described, scores_of
from interp.features.table import judged, schema_with
from interp.interpreters import TO_SCORE, Interpreters, all_scores
from interp.scorers.detection import SHUFFLED
from interp.scorers.scorer import ScoreTask
from interp.set_comparison import compare
from maira_jax.run import files, processes, storage
from maira_jax.run.jsonl import PHASES
from maira_jax.run.stages.run_config import plain
from maira_jax.run.stages.stage import MANIFEST, UNFINISHED, Stage
from sae.activations.store import source_of
from sae.saved import load_sae

# What decides scores, the exemplars apart.
_FIELDS = ("judge", "scorers", "features", "min_contexts", "n_prompt", "bootstrap")
# Features whose requests are counted for the estimate of a run.
_N_COUNTED = 32


def run(config: ml_collections.ConfigDict, workdir: Path) -> dict[str, Any]:
    """Scores the explanations of the set `config.interpret.set`, by the first process alone.

    Returns:
      What the manifest counts.

    Raises:
      UserError: a field is out of range, the run was not interpreted or has no such set, or the judge cannot be asked.
    """
    return processes.first_only(lambda: _run(config, Path(workdir)))


def _run(config: ml_collections.ConfigDict, workdir: Path) -> dict[str, Any]:
    section = InterpretSection.of(config)
    imported = sets.stage_name(section.set)
    deciding = {name: value for name, value in section.deciding().items() if name in _FIELDS}
    identity: dict[str, Any] = {"interpret": deciding, "seed": config.seed, "set": _content(workdir / imported)}
    with contextlib.ExitStack() as stack:
        interpreters = Interpreters.of(
            section,
            config.seed,
            lambda: stack.enter_context(contextlib.closing(ChatModel.open(config, workdir))),
            workdir / "activations",
            is_of_images(source_of(workdir / "activations")),
        )
        computing = {}
        if interpreters.model is not None:
            judge = interpreters.model.client.section
            identity["judge"] = judge.deciding() | {"prompts": list(interpreters.versions)}
            computing = judge.computing()
        name, inputs = f"{imported}/{sets.SCORED}", ("activations", "sae", sets.OWN_SET, imported)
        _remove_outdated(workdir / name, identity)
        stage = stack.enter_context(Stage(workdir, name, identity, inputs=inputs, computing=computing, config=config))
        if not stage.finished:
            summary = _score(section, interpreters, config.seed, workdir, stage.dir)
            counts = {name: summary[name] for name in ("features", "scored")}
            of_both = summary["comparison"]
            stage.finish(counts | {"detection": summary["detection"]["mean"], "agreement": of_both["agreement"]})
        return stage.manifest["counts"]


def _content(folder: Path) -> str | None:
    """The hash of a set's table as it was imported; None if there is no such set."""
    storage.fetch(folder / MANIFEST)
    path = folder / MANIFEST
    return str(files.read_object(path)["counts"]["imported"]["sha256"]) if path.is_file() else None


def _remove_outdated(folder: Path, identity: Mapping[str, Any]) -> None:
    """Removes scores of the set before it was added to; a language model's answers stay, so they cost nothing again."""
    storage.fetch(folder, (MANIFEST, UNFINISHED))
    for path in (folder / MANIFEST, folder / UNFINISHED):
        if path.is_file():
            section = files.read_object(path).get("section", {})
            if section.get("set") != identity["set"] and section | {"set": None} == plain({**identity, "set": None}):
                files.remove(folder)
                print(f"{folder} is of the set before it was added to: it is written anew", file=sys.stderr)
                return


def _score(
    section: InterpretSection, interpreters: Interpreters, seed: int, workdir: Path, out: Path
) -> dict[str, Any]:
    """Writes the results into `out` and returns the summary."""
    n_features = load_sae(workdir / "sae").n_features
    exemplars = ExemplarBatches(workdir / sets.OWN_SET / "exemplars.parquet", n_features, out / PHASES)
    explained = _explained(sets.read_set(workdir, section.set), n_features, frozenset(section.features))
    _announce(interpreters, exemplars, explained)
    scores = all_scores(interpreters.scorers, exemplars, explained, seed)
    interpreters.refuse_no_answer(exemplars.phases / "scores")
    origin = interpreters.origin()
    columns = judged(origin, explained, scores) | {"feature": list(range(n_features))}
    others = [name for name in scores if name not in ("detection", SHUFFLED)]
    schema = pa.schema([field for field in schema_with(others) if field.name in columns])
    table = pa.table([pa.array(columns[field.name], field.type) for field in schema], schema=schema)
    table = table.filter(pc.is_valid(table["explanation"]))
    _write(table, out / sets.FEATURES)
    compared, of_both = compare(workdir, section.set)
    _write(compared, out / "comparison.parquet")
    scorers = ("detection", "detection_random", "detection_hard", SHUFFLED, *others)
    summary = {
        "set": section.set,
        "judge": origin.judge,
        "prompt_version": origin.prompt_version,
        "cost": origin.usage.get("cost", 0.0),
        "usage": dict(origin.usage),
        "features": table.num_rows,
        "scored": table.num_rows - table["detection"].null_count,
        "not_scored": dict(sorted(Counter(filter(None, table["reason"].to_pylist())).items())),
        **{name: described(scores_of(table[name]), section.bootstrap) for name in scorers},
        "compared_with": sets.OWN_SET,
        "comparison": of_both,
    }
    files.write_json(out / "summary.json", summary)
    return summary


def _explained(table: pa.Table, n_features: int, wanted: frozenset[int]) -> Records:
    """One record per feature, as an explainer gives it; `wanted`: of these alone, or of all if it is empty."""
    rows = {row["feature"]: row for row in table.select(["feature", "name", "explanation"]).to_pylist()}
    records = []
    for feature in range(n_features):
        row = rows.get(feature, {"name": None, "explanation": None})
        reason = None if row["explanation"] else "the set does not explain it"
        if wanted and feature not in wanted:
            row, reason = {"name": None, "explanation": None}, "not asked for"
        records.append({"name": row["name"], "text": row["explanation"], "reason": reason, "cost": 0.0})
    return [record | {"top_tokens": None} for record in records]


def _announce(interpreters: Interpreters, exemplars: ExemplarBatches, explained: Records) -> None:
    """Has the language model, if there is one, say what all questions are going to cost."""
    features = [feature for feature, record in enumerate(explained) if record["text"]]
    if interpreters.model is None or not features:
        return
    client = interpreters.model.client
    sample = [features[place] for place in np.unique(np.linspace(0, len(features) - 1, _N_COUNTED).astype(int))]
    with client.counting() as count:
        for scorer in (*interpreters.scorers.values(), interpreters.scorers["detection"]):
            rows = exemplars.read([range(feature, feature + 1) for feature in sample], TO_SCORE)
            for _ in scorer.score(ScoreTask(feature, explained[feature]["text"], own) for feature, own in rows):
                pass
    client.announce(count, len(features) / len(sample))


def _write(table: pa.Table, path: Path) -> None:
    with files.atomic_path(path) as temporary:
        pq.write_table(table, temporary)

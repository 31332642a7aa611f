"""The interpret stage: exemplars, explanations, detection scores and concepts for every feature.

Each phase leaves a file and judges answer in batches of features, so a killed run goes on where it was.
"""

import contextlib
import dataclasses
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np

from interp.config import InterpretConfig
from interp.exemplars import contexts, exemplar_table, index
from interp.exemplars.corpus import Corpus
from interp.explainers import llm
from interp.explainers.judge import Judge, OfflineJudge
from interp.features import concepts, relatives, table
from interp.judging import Judging
from interp.scorers import controls, ground_truth
from maira_jax.errors import UserError
from maira_jax.inputs.tokens import Kind
from maira_jax.run import files
from maira_jax.run.stage import Stage
from maira_jax.studies.readers import load_stated
from sae.autoencoder import Sae
from sae.saved import load_sae

# Nearest other features by co-activity, whose contexts are hard to tell from a feature's own.
_N_NEIGHBOURS = 8


def run(config: ml_collections.ConfigDict, workdir: Path) -> dict[str, Any]:
    """Interprets every feature of `workdir/sae`; see DESIGN for the files in `workdir/interp`.

    Returns:
      What the manifest counts.

    Raises:
      UserError: the config is invalid, an input stage is not finished, or there is nothing held out to score on.
    """
    cfg = InterpretConfig.from_config(config)
    judge: Judge = OfflineJudge() if cfg.judge == "offline" else llm.from_config(config, Path(workdir))
    section = {"interpret": config.interpret.to_dict(), "seed": config.seed}
    if judge.identity:
        section["judge"] = dict(judge.identity)
    stage = Stage(Path(workdir), "interp", section, inputs=("model", "activations", "sae"))
    with contextlib.closing(judge), stage:
        if not stage.finished:
            _run(cfg, judge, config.studies, Path(workdir), stage.dir)
            stage.finish(_counts(files.read_json(stage.dir / "summary.json")))
            shutil.rmtree(stage.dir / "phases", ignore_errors=True)
        return stage.manifest["counts"]


def _counts(summary: dict[str, Any]) -> dict[str, Any]:
    counts = {name: summary[name] for name in ("features", "alive", "scored")}
    counts |= {name: summary["detection"][name] for name in ("above_075", "below_05")}
    return counts | {"concepts": summary["concepts"]["tested"], "concepts_f1_08": summary["concepts"]["f1_08"]}


def _run(cfg: InterpretConfig, judge: Judge, studies: ml_collections.ConfigDict, workdir: Path, out: Path) -> None:
    sae, corpus = load_sae(workdir / "sae"), Corpus.open(workdir, cfg.context_length)
    if sae.d_model != corpus.store.d_model:
        raise UserError(
            f"{workdir / 'sae'} takes {sae.d_model} dimensions and {workdir / 'activations'} has "
            f"{corpus.store.d_model}: use the autoencoder that was trained on these activations"
        )
    unknown = [feature for feature in cfg.features if not 0 <= feature < sae.n_features]
    if unknown:
        raise UserError(f"interpret.features names {unknown[0]}, but the features are 0 to {sae.n_features - 1}")
    phases = out / "phases"
    statistics = _collect(cfg, sae, corpus, out / "exemplars.parquet", phases)
    labels = concepts.StudyLabels.from_json(corpus.studies["labels"].to_pylist())
    found = concepts.fit(np.load(phases / "study_peak.npy", mmap_mode="r"), labels, corpus.held_out)
    concept_table, left_out = concepts.table(found, labels, corpus.held_out, cfg.n_least_studies)
    judging = Judging(cfg, judge, out / "exemplars.parquet", sae.n_features, phases, cfg.features)
    judging.announce(len(controls.ARMS) * cfg.n_control)
    explained = judging.explain()
    scored = judging.score(explained)
    stated = ground_truth.statements(corpus, load_stated(studies), cfg.n_least)
    controlled = _judge_controls(cfg, judge, sae, corpus, statistics["train"], scored, stated, phases / "controls")
    known = table.statistics(sae, statistics)
    known |= table.promoted_tokens(workdir, sae, corpus.store.source["site"])
    known |= table.detected(labels, found)
    tables = {"concepts": concept_table}
    if stated:
        known |= table.described(statistics, stated, cfg.n_least)
        tables["statements"] = ground_truth.table(
            statistics, stated, [record["label"] for record in explained], cfg.n_least
        )
    tables |= table.tables(known, judge, explained, scored, controlled)
    table.write(out, tables, left_out, judge, cfg.bootstrap)


def _judge_controls(
    cfg: InterpretConfig,
    judge: Judge,
    sae: Sae,
    corpus: Corpus,
    train: index.SplitIndex,
    scored: Sequence[Mapping[str, Any]],
    stated: ground_truth.Statements | None,
    phases: Path,
) -> list[dict[str, Any]]:
    """A record for each feature of the control arms; none if no feature was scored that they could be like."""
    eligible = np.array([record["feature"] for record in scored if record["score"]])
    if not len(eligible):
        return []
    records: list[dict[str, Any]] = []
    for number, control in enumerate(controls.build(sae, corpus.store, train, eligible, cfg.n_control, cfg.seed)):
        own = phases / str(number)
        path = own / "exemplars.parquet"
        found = _collect(cfg, control.sae, dataclasses.replace(corpus, store=control.store), path, own)
        true = table.described(found, stated, cfg.n_least) if stated else {}
        judging = Judging(cfg, judge, path, control.sae.n_features, own, ())
        explained = judging.explain()
        n_active = sum(part.n_tokens.sum(1) for part in found.values())
        density = n_active / sum(part.total_tokens for part in found.values())
        records += [
            {"control": control.arm[i], "direction": control.direction[i], "matched_feature": int(control.matched[i])}
            | {"density": float(density[i]), "name": said["label"], "explanation": said["text"]}
            | {"reason": record["reason"], "cost": said["cost"] + record["cost"], "score": record["score"]}
            | {name: column[i] for name, column in true.items()}
            for i, (said, record) in enumerate(zip(explained, judging.score(explained, shuffle=False), strict=True))
        ]
    return records


def _collect(cfg: InterpretConfig, sae: Sae, corpus: Corpus, path: Path, phases: Path) -> dict[str, index.SplitIndex]:
    """Writes all exemplars to `path` and index.npz and study_peak.npy into `phases`, unless they are there."""
    if path.is_file():
        return index.load(phases / "index.npz")
    sizes = index.IndexConfig(cfg.n_top, cfg.n_sample, cfg.n_pool, cfg.block_tokens, cfg.seed)
    kinds = frozenset(kind for kind in Kind if contexts.SECTION_NAMES[kind] in cfg.concept_sections)
    with files.atomic_path(phases / "study_peak.npy") as temporary:
        # On disk, because it grows with the number of studies.
        peak = files.array_on_disk(temporary, np.float32, (len(corpus.held_out), sae.n_features))
        found = index.build(sae, corpus.store, corpus.contexts, corpus.held_out, sizes, peak, kinds)
        peak.flush()
    index.save(phases / "index.npz", found)
    n_activating = {"train": cfg.n_explain, "held_out": cfg.n_score}
    similar, _ = relatives.nearest(relatives.centred_activity(index.pool_activity(found)), _N_NEIGHBOURS)
    exemplar_table.collect(path, sae, corpus, found, similar, n_activating, cfg.seed, cfg.feature_batch)
    return found

"""The interpret stage: index, exemplars, explanations, scores, controls, tables.

Each phase leaves a file, and explanations and scores are saved in batches of features, so that a killed run resumes.
The steps are the rooms of this package in their order: exemplars, explainers, scorers, features. Only the controls pass
through the first three a second time: they are matched to scored features, so they are built after scoring.

Features of images go the same way as features of text. What differs is how exemplars are chosen, who explains, and who
judges.
"""

import contextlib
import dataclasses
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np
import pyarrow.compute as pc

from interp import coverage, scored_set
from interp.config import BLOCK_TOKENS, N_POOL, N_SAMPLE, InterpretSection
from interp.controls import CONTROLS, matched
from interp.exemplar_batches import ExemplarBatches, Records
from interp.exemplars import exemplar_table, image_exemplars, index, neighbours
from interp.exemplars.corpus import Corpus, is_of_images
from interp.exemplars.index_pass import running_index
from interp.exemplars.index_pass.shared_sae import devices_of
from interp.explainers.chat_model import ChatModel
from interp.explainers.evidence import ExplainTask, top_tokens
from interp.explainers.explainer import FEATURE_BATCH
from interp.features import columns, concepts, table
from interp.interpreters import TO_SCORE, Interpreters, all_scores, score
from interp.medsae.vectors import StudyVectors
from interp.scorers import ground_truth
from interp.scorers.scorer import ScoreTask
from maira_jax.errors import UserError
from maira_jax.inputs.tokens import SECTION_NAMES, Kind
from maira_jax.run import files, processes
from maira_jax.run.config import RunSection
from maira_jax.run.jsonl import PHASES
from maira_jax.run.performance import profile
from maira_jax.run.performance.profile import StepTrace
from maira_jax.run.stages import growth
from maira_jax.run.stages.stage import Stage
from maira_jax.studies.readers import load_stated
from sae.activations.store import HELD_OUT, TRAIN, source_of
from sae.autoencoder import Sae
from sae.saved import load_sae

# Nearest other features by co-activity, whose contexts are hard to tell from a feature's own.
_N_NEIGHBOURS = 8
# Features whose requests are counted for the estimate of a run, and an explanation of usual length in them.
_N_COUNTED = 32
_TYPICAL_EXPLANATION = "A pleural effusion that is said to be present, on either side and of any size. " * 3
# What the explainer is shown comes from the train split; the strongest contexts of the other tell who is never active.
_TO_EXPLAIN = (pc.field("split") == TRAIN) | (pc.field("kind") == "top")


def run(config: ml_collections.ConfigDict, workdir: Path) -> dict[str, Any]:
    """Interprets every feature of `workdir/sae`, or scores the explanations of a set; see `interp.scored_set`.

    Writes into `workdir/interp` the tables features (also as .jsonl), controls, concepts, coverage, exemplars and,
    where the truth of every sentence is known, statements, as .parquet, and summary.json.

    A result of some features grows by those that are asked for in addition: exemplars and a language model's answers
    stay, and tables and controls are those of all.

    Returns:
      What the manifest counts.

    Raises:
      UserError: the config is invalid, an input stage is not finished, or there is nothing held out to score on.
    """
    section, workdir = InterpretSection.of(config), Path(workdir)
    grows = {"interpret.features": growth.union_or_all}
    if section.set:
        return scored_set.run(config, workdir)
    of_images = is_of_images(source_of(workdir / "activations"))
    with contextlib.ExitStack() as stack:
        interpreters = None
        identity: dict[str, Any] = {"interpret": section.deciding(), "seed": config.seed}
        computing = section.computing() | {"mesh": RunSection.of(config).mesh}
        if processes.is_first():
            interpreters = Interpreters.of(
                section,
                config.seed,
                lambda: stack.enter_context(contextlib.closing(ChatModel.open(config, workdir))),
                workdir / "activations",
                of_images,
            )
            if interpreters.model is not None:
                judge = interpreters.model.client.section
                identity["judge"] = judge.deciding() | {"prompts": list(interpreters.versions)}
                computing |= judge.computing()
        inputs = ("activations", "sae") if of_images else ("model", "activations", "sae")
        stage = stack.enter_context(Stage(workdir, "interp", identity, inputs, computing, config, grows))
        if stage.extended:
            for name in ("explanations", "scores", "controls"):
                files.remove(stage.dir / PHASES / name)
        if not stage.finished:
            features = tuple(stage.section["interpret"]["features"])
            section = section.model_copy(update={"features": features})
            _interpret(section, interpreters, config, workdir, stage.dir)
            stage.finish(processes.first_only(lambda: _counts(files.read_json(stage.dir / "summary.json"))))
        return stage.manifest["counts"]


def _counts(summary: dict[str, Any]) -> dict[str, Any]:
    counts = {name: summary[name] for name in ("features", "alive", "scored")}
    counts |= {name: summary["detection"][name] for name in ("above_075", "below_05")}
    return counts | {"concepts": summary["concepts"]["tested"], "concepts_f1_08": summary["concepts"]["f1_08"]}


def _interpret(
    section: InterpretSection,
    interpreters: Interpreters | None,
    config: ml_collections.ConfigDict,
    workdir: Path,
    out: Path,
) -> None:
    """Has all processes pass over the store, for features and controls; the rest is the first one's work alone.

    So no language model is asked by two of them. `interpreters` are None on the others.
    """
    sae, corpus = load_sae(workdir / "sae"), Corpus.open(workdir, section.context_length)
    _check(section, sae, corpus, workdir)
    not_read = ("activations",) if corpus.of_images else ()
    exemplars = ExemplarBatches(out / "exemplars.parquet", sae.n_features, out / PHASES, not_read)
    trace = StepTrace.of_run(config, workdir, "interpret")
    found = _collect(section, config, sae, corpus, exemplars, trace)
    scored = interpreters and _scored(section, interpreters, exemplars, config.seed)
    eligible = processes.broadcast(scored and scored.eligible())
    control_exemplars = _collect_controls(section, config, sae, corpus, found, eligible, exemplars)
    labels = concepts.StudyLabels.from_json(corpus.studies["labels"].to_pylist())
    vectors = _study_peaks_of_bases(section, config, sae, corpus, labels, exemplars.phases)
    if not interpreters or not scored:
        return
    stated = None
    if not corpus.of_images:
        stated = ground_truth.statements(corpus, load_stated(config.studies), section.min_contexts)
    true = ground_truth.feature_columns(found, stated, section.min_contexts, sae.n_features)
    tables = {}
    if stated:
        names = [record["name"] for record in scored.explained]
        tables["statements"] = ground_truth.table(found, stated, names, section.min_contexts)
    controlled = _controls(section, interpreters, control_exemplars, stated)
    peaks = index.study_peaks(exemplars.phases, len(corpus.held_out), sae.n_features)
    fit = concepts.fit(peaks, labels, corpus.held_out)
    tables["concepts"], left_out = concepts.table(fit, labels, corpus.held_out, section.min_studies)
    known = true | columns.of_activity(sae, found) | columns.of_relatives(sae, found)
    known |= columns.of_logit_lens(workdir, sae, corpus.store.source.get("site", ""))
    known |= columns.of_concepts(labels, fit, left_out)
    tables |= table.tables(known, interpreters.origin(), scored.explained, scored.scores, controlled)
    covered = None
    if vectors is not None and tables["concepts"].num_rows:
        names = tables["concepts"]["concept"].to_pylist()
        covered, tables["coverage"] = coverage.measure(vectors, labels, corpus, names, section.bootstrap)
    table.write(out, tables, left_out, covered, interpreters.origin(), section.bootstrap)


def _check(section: InterpretSection, sae: Sae, corpus: Corpus, workdir: Path) -> None:
    """Refuses an autoencoder of other activations, and features that it does not have."""
    if sae.d_model != corpus.store.d_model:
        raise UserError(
            f"{workdir / 'sae'} takes {sae.d_model} dimensions and {workdir / 'activations'} has "
            f"{corpus.store.d_model}: use the autoencoder that was trained on these activations"
        )
    unknown = [feature for feature in section.features if feature >= sae.n_features]
    if unknown:
        raise UserError(f"interpret.features names {unknown[0]}, but the features are 0 to {sae.n_features - 1}")


def _collect(
    section: InterpretSection,
    config: ml_collections.ConfigDict,
    sae: Sae,
    corpus: Corpus,
    exemplars: ExemplarBatches,
    trace: StepTrace = profile.OFF,
) -> dict[str, index.SplitIndex]:
    """Has all processes make the index, in the phases, and the first one write the exemplars, unless they are there."""
    if processes.first_only(lambda: index.is_built(exemplars.phases)):
        found = index.load(exemplars.phases)
    else:
        sizes = running_index.IndexConfig(section.n_top, N_SAMPLE, N_POOL, BLOCK_TOKENS, config.seed)
        kinds = frozenset(kind for kind in Kind if SECTION_NAMES[kind] in section.concept_sections)
        if corpus.of_images:
            kinds = frozenset({Kind.IMAGE})
        devices, folder = devices_of(RunSection.of(config).mesh), exemplars.phases
        cut, held_out = corpus.contexts, corpus.held_out
        name = exemplars.named("exemplars")
        found = index.build(sae, corpus.store, cut, held_out, sizes, kinds, devices, folder, trace=trace, name=name)
    if processes.is_first() and not exemplars.path.is_file():
        n_activating = {TRAIN: section.n_explain, HELD_OUT: section.n_score}
        if corpus.of_images:
            peaks = index.study_peaks(exemplars.phases, len(corpus.held_out), sae.n_features)
            chosen = (peaks, section.n_top, n_activating, config.seed)
            image_exemplars.collect(exemplars.path, sae, corpus, *chosen, FEATURE_BATCH)
            return found
        similar, _ = neighbours.coactive(found, _N_NEIGHBOURS)
        exemplar_table.collect(exemplars.path, sae, corpus, found, similar, n_activating, config.seed, FEATURE_BATCH)
    return found


@dataclasses.dataclass(frozen=True)
class _ScoredFeatures:
    """Explanations and scores of all features.

    Attributes:
      explained: what `_explain` gives.
      scores: what `all_scores` gives.
    """

    explained: Records
    scores: Mapping[str, Records]

    def eligible(self) -> list[int]:
        """The features that controls can be like."""
        return [feature for feature, record in enumerate(self.scores["detection"]) if record["score"]]


def _scored(
    section: InterpretSection, interpreters: Interpreters, exemplars: ExemplarBatches, seed: int
) -> _ScoredFeatures:
    wanted = section.features or range(exemplars.n_features)
    _announce(section, interpreters, exemplars, wanted)
    explained = _explain(section, interpreters, exemplars, frozenset(wanted))
    interpreters.refuse_no_answer(exemplars.phases / "explanations")
    scores = all_scores(interpreters.scorers, exemplars, explained, seed)
    interpreters.refuse_no_answer(exemplars.phases / "scores")
    return _ScoredFeatures(explained, scores)


def _announce(
    section: InterpretSection, interpreters: Interpreters, exemplars: ExemplarBatches, wanted: Sequence[int]
) -> None:
    """Has the language model, if there is one, say what all features and controls are going to cost."""
    if interpreters.model is None:
        return
    client = interpreters.model.client
    places = np.unique(np.linspace(0, len(wanted) - 1, _N_COUNTED).astype(int))
    sample = [range(wanted[place], wanted[place] + 1) for place in places]
    with client.counting() as count:
        explained = []  # features
        for feature, rows in exemplars.read(sample, _TO_EXPLAIN):
            task = interpreters.task_of(feature, rows, section.n_explain, section.min_contexts)
            if isinstance(task, ExplainTask):
                explained += [feature for _ in interpreters.explainer.explain([task])]
        for scorer in (*interpreters.scorers.values(), interpreters.scorers["detection"]):
            held_out = exemplars.read([range(feature, feature + 1) for feature in explained], TO_SCORE)
            for _ in scorer.score(ScoreTask(feature, _TYPICAL_EXPLANATION, rows) for feature, rows in held_out):
                pass
    n_controls = len(CONTROLS.names()) * section.controls_of_kind
    client.announce(count, (len(wanted) + n_controls) / len(sample))


def _explain(
    section: InterpretSection, interpreters: Interpreters, exemplars: ExemplarBatches, wanted: frozenset[int]
) -> Records:
    """One record per feature: name, text, cost and top tokens, or the reason why there is no explanation."""
    nothing = {"name": None, "text": None, "cost": 0.0}

    def explained(batches: Sequence[range]) -> Iterator[dict[str, Any]]:
        records: deque[dict[str, Any]] = deque()  # of features that were put to the explainer, and of those between

        def tasks() -> Iterator[ExplainTask]:
            for feature, rows in exemplars.read(batches, _TO_EXPLAIN):
                task: ExplainTask | str = "not asked for"
                if feature in wanted:
                    task = interpreters.task_of(feature, rows, section.n_explain, section.min_contexts)
                reason = task if isinstance(task, str) else None
                records.append({"feature": feature, "reason": reason, "top_tokens": top_tokens(rows)})
                if isinstance(task, ExplainTask):
                    yield task

        for explanation in interpreters.explainer.explain(tasks()):
            while records[0]["reason"] is not None:
                yield records.popleft() | nothing
            if explanation is None:
                yield records.popleft() | nothing | {"reason": "the judge gave no explanation"}
            else:
                yield records.popleft() | dataclasses.asdict(explanation)
        for record in records:
            yield record | nothing

    return exemplars.saved("explanations", "explain", explained)


@dataclasses.dataclass(frozen=True)
class _ControlExemplars:
    """Controls, their activity and their exemplars."""

    made: matched.ControlFeatures
    activity: Mapping[str, index.SplitIndex]
    exemplars: ExemplarBatches


def _collect_controls(
    section: InterpretSection,
    config: ml_collections.ConfigDict,
    sae: Sae,
    corpus: Corpus,
    found: Mapping[str, index.SplitIndex],
    eligible: Sequence[int],
    exemplars: ExemplarBatches,
) -> list[_ControlExemplars]:
    """Has all processes find the exemplars of controls; none if no feature was scored that they could be like."""
    if not eligible:
        return []
    collected = []
    made = matched.build(sae, corpus.store, found[TRAIN], np.array(eligible), section.controls_of_kind, config.seed)
    for number, control in enumerate(made):
        folder = exemplars.phases / "controls" / str(number)
        name = " and ".join(dict.fromkeys(control.kind))
        own = ExemplarBatches(folder / "exemplars.parquet", control.sae.n_features, folder, exemplars.not_read, name)
        activity = _collect(section, config, control.sae, dataclasses.replace(corpus, store=control.store), own)
        collected.append(_ControlExemplars(control, activity, own))
    return collected


def _study_peaks_of_bases(
    section: InterpretSection,
    config: ml_collections.ConfigDict,
    sae: Sae,
    corpus: Corpus,
    labels: concepts.StudyLabels,
    phases: Path,
) -> StudyVectors | None:
    """Has all processes find what concepts are looked for in, where there are labels; None on all but the first."""
    if not labels.concepts:
        return None
    sections = (SECTION_NAMES[Kind.IMAGE],) if corpus.of_images else section.concept_sections
    shared = RunSection.of(config)
    return coverage.study_peaks_of_bases(sae, corpus, sections, phases / "bases", devices_of(shared.mesh), shared.seed)


def _controls(
    section: InterpretSection,
    interpreters: Interpreters,
    collected: Sequence[_ControlExemplars],
    stated: ground_truth.Statements | None,
) -> Records:
    """One record per control."""
    records: Records = []
    for part in collected:
        control, own, activity = part.made, part.exemplars, part.activity
        true = ground_truth.feature_columns(activity, stated, section.min_contexts, own.n_features)
        explained = _explain(section, interpreters, own, frozenset(range(own.n_features)))
        scores = {name: score(scorer, name, own, explained) for name, scorer in interpreters.scorers.items()}
        n_active = sum(split.n_tokens.sum(1) for split in activity.values())
        density = n_active / sum(split.total_tokens for split in activity.values())
        records += [
            {"control": control.kind[i], "direction": control.direction[i], "matched_feature": int(control.matched[i])}
            | {"density": float(density[i]), "name": explanation["name"], "explanation": explanation["text"]}
            | {"reason": scores["detection"][i]["reason"]}
            | {"cost": explanation["cost"] + sum(results[i]["cost"] for results in scores.values())}
            | {"scores": {name: results[i]["score"] for name, results in scores.items()}}
            | {name: column[i] for name, column in true.items()}
            for i, explanation in enumerate(explained)
        ]
    return records

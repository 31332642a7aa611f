"""The faithfulness stage: a feature is amplified in one report, and the judge says what that made the text about.

Faithfulness asks of an explanation whether it says what a feature does to what the model writes, where other scores ask
whether it says when the feature is active (FADE, arXiv 2502.16994). The judge is shown the explanation and two reports
on the same study, the unsteered one and the one with the feature amplified, in random order, and names the one that is
more about the explanation, or neither. The score is 1 where it names the amplified one, 0 where it names the other, and
0.5 where it names neither or the amplified text is no report; so that 0.5 is chance, and what a direction scores whose
explanation and effect have nothing in common.

Controls are amplified as far, along the directions that their explanations were found by. Shuffled explanations, those
of other features on the same reports, are chance.
"""

import contextlib
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ml_collections
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from interp.config import InterpretSection
from interp.explainers.chat_model import ChatModel
from interp.features.summary import SHUFFLED_EXPLANATIONS, described, gain
from interp.medsae.vectors import FEATURES
from interp.scorers import JUDGES
from interp.scorers.judge import Judge, Question
from interp.scorers.llm_judge import FAVOUR
from maira_jax.checkpoint import store
from maira_jax.checkpoint.convert import ModelSection
from maira_jax.inputs.batches import fill_up
from maira_jax.reports.text import degenerate
from maira_jax.run import files, jsonl
from maira_jax.run.columns import column
from maira_jax.run.config import RunSection
from maira_jax.run.progress import progress
from maira_jax.run.stages.stage import Stage
from maira_jax.studies.readers import load_studies
from sae.activations.store import ActivationStore
from sae.saved import load_sae
from steer.config import SteerSection
from steer.faithfulness.amplified import Amplified, chosen
from steer.faithfulness.section import FaithfulnessSection
from steer.methods.direction import Direction
from steer.program.prompts import Prompts
from steer.program.sweep_writer import GenerationRow, SteeredReport, SweepWriter
from steer.sweep import edited_site, held_out

FOLDER = "faithfulness"
SCORES, SUMMARY = "scores.parquet", "summary.json"
SCHEMA = pa.schema(
    [
        column("basis", pa.string(), "features, the kind of control, or shuffled explanations"),
        column("feature", pa.int32(), "that is amplified; of a control the one that has its density"),
        column("name", pa.string(), "a few words of the explanation"),
        column("explanation", pa.string(), "that the judge was shown"),
        column("study_id", pa.string(), "the study"),
        column("strength", pa.float64(), "how far it is amplified, in largest activations of the feature"),
        column("original", pa.string(), "the unsteered report"),
        column("amplified", pa.string(), "the report with the feature amplified"),
        column("degenerate", pa.string(), "why that is no report; empty if it is one"),
        column("score", pa.float64(), "1: more about the explanation than the original, 0: less, 0.5; null: no answer"),
        column("cost", pa.float64(), "of the judge's answer in US dollars"),
    ]
)


class ReportChange(NamedTuple):
    """An explanation with the report before and after its direction was amplified."""

    basis: str
    feature: int
    name: str
    explanation: str
    study_id: str
    strength: float
    original: str
    amplified: str
    degenerate: str


def run(config: ml_collections.ConfigDict, workdir: Path) -> dict[str, Any]:
    """Amplifies features and controls, each in one report, and has the judge of `interpret.judge` compare it.

    Writes `faithfulness/scores.parquet`, one row per explanation (see `SCHEMA`), and `summary.json`: by basis the mean
    score with its interval, and what features have more than each control. A killed run resumes with the studies that
    are missing, and asks a language model nothing twice.

    Returns:
      The counts of the manifest.

    Raises:
      UserError: a field is out of range, an input is not finished, or no explanation was scored.
    """
    section, steer, workdir = FaithfulnessSection.of(config), SteerSection.of(config), Path(workdir)
    strength = max(map(abs, steer.nonzero_strengths))
    decides = steer.model_dump(include={"positions", "max_new_tokens", "temperature", "top_p"})
    identity: dict[str, Any] = {"faithfulness": section.deciding(), "steer": decides | {"strength": strength}}
    identity |= {"studies": config.studies.to_dict(), "seed": config.seed, "weights": ModelSection.of(config).weights}
    computing = {"mesh": RunSection.of(config).mesh}
    with contextlib.ExitStack() as stack:
        opened: list[ChatModel] = []

        def open_language_model() -> ChatModel:
            opened.append(stack.enter_context(contextlib.closing(ChatModel.open(config, workdir))))
            return opened[0]

        judge = JUDGES.get(InterpretSection.of(config).judge)(open_language_model, dict)
        if opened:
            client = opened[0].client.section
            identity["judge"] = client.deciding() | {"prompts": [FAVOUR.stem]}
            computing |= client.computing()
        inputs = ("model", "activations", "sae", "interp")
        stage = stack.enter_context(Stage(workdir, FOLDER, identity, inputs, computing, config))
        if not stage.finished:
            changes = _changes(config, workdir, section, steer, strength, stage.dir)
            rows = _judged(judge, opened, changes, config.seed)
            with files.atomic_path(stage.dir / SCORES) as path:
                pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), path)
            summary = {"judge": judge.name, "strength": strength} | summarised(rows, section.bootstrap)
            files.write_json(stage.dir / SUMMARY, summary)
            stage.finish({"reports": len(changes)} | means(summary))
        return stage.manifest["counts"]


def means(summary: Mapping[str, Any]) -> dict[str, float | None]:
    """The mean score of each basis."""
    return {basis: found["mean"] for basis, found in summary["bases"].items()}


def _changes(
    config: ml_collections.ConfigDict,
    workdir: Path,
    section: FaithfulnessSection,
    steer: SteerSection,
    strength: float,
    folder: Path,
) -> list[ReportChange]:
    """The reports with each direction amplified, study by study."""
    activations, sae = ActivationStore.open(workdir / "activations"), load_sae(workdir / "sae")
    mesh, weights = RunSection.of(config).mesh, ModelSection.of(config).weights
    params, cfg = store.load(workdir / "model", mesh, rows=1, weights=weights)
    site = edited_site(activations, cfg, steer)
    amplified = chosen(workdir / "interp", sae, activations, section.n, config.seed)
    studies = held_out(load_studies(config.studies), activations, section.studies)[: len(amplified)]
    groups = {f"{number:06d}": amplified[number :: len(studies)] for number in range(len(studies))}
    none = GenerationRow(Direction.none(sae.d_model), 0.0, site)
    n_rows = 1 + max(map(len, groups.values()))  # of every study, so that one program is compiled
    one_study = steer.model_copy(update={"batch_studies": 1})
    writer = SweepWriter.of(params, cfg, Prompts.of(studies, workdir / "model"), one_study, config.seed, [none])
    expected = {
        name: [{"study_id": study.study_id, "basis": each.basis, "explanation": each.explanation} for each in own]
        for (name, own), study in zip(groups.items(), studies, strict=True)
    }
    parts = jsonl.PartFiles(folder, expected, "measure faithfulness again")
    for name in progress(parts.mine, unit="study", desc="faithfulness"):
        own = groups[name]
        rows = fill_up([none, *(GenerationRow(each.direction, strength, site) for each in own)], n_rows)
        original, *reports = writer.of_rows(rows).write([int(name)])[0]
        study_id = studies[int(name)].study_id
        changes = (_change(*pair, study_id, strength, original.text) for pair in zip(own, reports, strict=False))
        parts.write(name, [change._asdict() for change in changes])
    return [ReportChange(**record) for record in parts.records()]


def _change(amplified: Amplified, report: SteeredReport, study_id: str, strength: float, original: str) -> ReportChange:
    return ReportChange(
        basis=amplified.basis,
        feature=amplified.feature,
        name=amplified.name,
        explanation=amplified.explanation,
        study_id=study_id,
        strength=strength,
        original=original,
        amplified=report.text,
        degenerate=degenerate(report.text, report.finished, report.finite),
    )


def _judged(
    judge: Judge, models: Sequence[ChatModel], changes: Sequence[ReportChange], seed: int
) -> list[dict[str, Any]]:
    """Rows of `SCHEMA`; what language models are asked is announced first."""
    changes = [*changes, *_shuffled(changes, seed)]
    is_second = np.random.default_rng((seed, len(changes))).integers(2, size=len(changes)) > 0
    asked = [not change.degenerate and change.original != change.amplified for change in changes]

    def questions() -> Iterator[Question]:
        for change, last, wanted in zip(changes, is_second, asked, strict=True):
            pair = (change.original, change.amplified)
            if wanted:
                yield Question(change.explanation, pair if last else pair[::-1])

    for model in models:
        with model.client.counting() as count:
            deque(judge.favour(questions()), maxlen=0)
        model.client.announce(count, 1.0)
    verdicts = judge.favour(questions())
    rows = []
    for change, last, wanted in zip(changes, is_second, asked, strict=True):
        score, cost = 0.5, 0.0
        if wanted:
            verdict = next(verdicts)
            if verdict is None:
                rows.append(change._asdict() | {"score": None, "cost": 0.0})
                continue
            original, own = verdict.answers if last else verdict.answers[::-1]
            score, cost = (1 + own - original) / 2, verdict.cost
        rows.append(change._asdict() | {"score": score, "cost": cost})
    assert next(verdicts, None) is None  # also lets the judge end what it opened
    return rows


def _shuffled(changes: Sequence[ReportChange], seed: int) -> list[ReportChange]:
    """The features' reports with the explanations of other features."""
    own = [change for change in changes if change.basis == FEATURES]
    order = np.random.default_rng((seed, len(own))).permutation(len(own))
    return [
        own[i]._replace(basis=SHUFFLED_EXPLANATIONS, name=own[j].name, explanation=own[j].explanation)
        for i, j in zip(order.tolist(), np.roll(order, 1).tolist(), strict=True)
    ]


def summarised(rows: Sequence[Mapping[str, Any]], n_bootstrap: int) -> dict[str, Any]:
    """By basis the mean score, and the share of degenerate texts; by control what features score more.

    Args:
      rows: rows of `SCHEMA`.
      n_bootstrap: resamples of the directions for each interval.

    Returns:
      `bases` with what `interp.features.summary.described` says, `degenerate` and `failed`, and `differences`.
    """
    by_basis: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        by_basis.setdefault(row["basis"], []).append(row)
    scores = {
        basis: np.array([row["score"] for row in own if row["score"] is not None]) for basis, own in by_basis.items()
    }
    bases: dict[str, dict[str, Any]] = {
        basis: described(scores[basis], n_bootstrap)
        | {
            "degenerate": float(np.mean([bool(row["degenerate"]) for row in own])),
            "failed": len(own) - len(scores[basis]),
        }
        for basis, own in by_basis.items()
    }
    differences = {
        f"{FEATURES} minus {basis}": gain(scores[FEATURES], scores[basis], n_bootstrap)
        for basis in scores
        if basis != FEATURES
    }
    return {"bases": bases, "differences": differences}

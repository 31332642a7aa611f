"""The evaluate stage: what steering changed, what of it was intended, and how sure that is.

Words used in the results, for a generation that steers towards a concept (intended: "added", positive strength) or away
from it (intended: "removed", negative strength):

* eligible: the unsteered report does not have the concept ("added"), or has it ("removed").
* on_target, the success: eligible, and the steered report has the concept (or no longer has it), as
  `maira_jax.reports.labeller.concepts` reads both reports. Its rate is over eligible generations.
* off_target: a finding that the concept is not about became present, uncertain or neither. Its rate
  is over all generations. Attributes (size, comparison, tip) of other findings are counted in off_target_attributes.
* no_change: no finding, attribute or concept changed; "identical": not one character did.
* repetition: the share of its four-word runs that a report repeats. mean_nll: the report's mean negative
  log-likelihood under the unsteered model, in nats per token; its exponential is the perplexity.
* off_target_extent: by how much findings changed that the concept is not about: 1 for a small one, 2 for one of medium
  or unnamed size, 3 for a large one, half where it is uncertain, and what lies between where it grows or is hedged.
* quality_words, quality_labels, quality_findings: how near the report comes to the study's own one, where a radiologist
  or the phantom wrote one (`maira_jax.reports.quality`); with "_change", minus that of the unsteered report.
* What an effect costs, with off_target and degenerate: nll_change, mean_nll minus that of the unsteered report;
  length, its words for each of the unsteered report's; format_kept: it is whole sentences, where the unsteered one is.
* history: the share of its words in phrases that compare with an earlier study (`maira_jax.reports.history`), in all
  and by class; history_before: that of the unsteered report.
* degenerate: empty, repetitive, without an end or of numbers that are not finite. Such generations are counted, and
  left out of all rates but "on_target_of_all", where they are failures.

Where a language model judges, it is shown the explanation of the feature, the original and the steered report, and not
which way the feature was steered; it lists the differences, each on target or not, and rates the steered report for the
concept, for being a report, and for fluency, 0 to 2 each (AxBench's scores). "judge_score" is their harmonic mean, 0 if
one of them is 0; where the concept is to be removed, its rating counts as 2 minus the rating. These rates are over the
reports that it answered on.

Intervals are 95 % percentile bootstrap intervals over studies. The best strength of a concept, a method and an intended
effect is the one with the most on-target minus off-target generations (a degenerate one counts as off target) on one
half of the studies; its rates are those of the other half. Strengths are looked at from the smallest one on, up to the
first at which more than a tenth of the reports are degenerate.
"""

import contextlib
import functools
import sys
from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import ml_collections
import pyarrow as pa
import pyarrow.parquet as pq

from interp.llm.client import ChatClient
from interp.llm.section import JudgeSection
from maira_jax.errors import UserError
from maira_jax.reports.quality import ReportQuality
from maira_jax.reports.vocabulary.history import PHRASES
from maira_jax.run import files, jsonl
from maira_jax.run.columns import column
from maira_jax.run.config import Section, setting
from maira_jax.run.progress import progress
from maira_jax.run.stages.stage import Stage
from maira_jax.studies.readers import load_studies, manifest
from maira_jax.studies.study import Study
from steer import comparison, reference_metrics
from steer.config import SteerSection
from steer.methods.direction import NONE
from steer.outcome import outcome
from steer.rates import reported_rows, selection_rates, summarise
from steer.stage import DIRECTIONS, GENERATIONS, SELECTION, folder

_REFERENCES = ("report", "phantom")  # origins of findings that are a reference: not those made of labels
FOLDER = "evaluation"  # with a folder for each sweep in it
RESULTS = "results.parquet"
SUMMARY = "summary.json"
_STRINGS = pa.list_(pa.string())
# What a language model counts, and rates from 0 to 2; null where it did not judge.
_JUDGED = {
    "on_target": "on-target differences by the language model; null where it did not judge",
    "off_target": "off-target differences by it",
    "concept": "how far the steered report has the concept, 0 to 2",
    "report": "how far it is a report, 0 to 2",
    "fluency": "how fluent it is, 0 to 2",
}
# Of a report against the study's reference report; null without one.
_QUALITY = {
    "words": "ROUGE-L against the reference report; null without one",
    "labels": "F1 of the CheXpert observations, against it",
    "findings": "F1 of findings at their places, weighed by size and certainty, against it",
}
SCHEMA = pa.schema(
    [
        column("line", pa.int32(), "number of the line in generations.jsonl, from 0"),
        column("study_id", pa.string(), "the study"),
        column("direction", pa.string(), "key of the direction"),
        column("method", pa.string(), "of steering"),
        column("concept", pa.string(), "that it is to change; empty when it has none"),
        column("feature", pa.int32(), "that is steered, if one is"),
        column("strength", pa.float64(), "in the sweep's units"),
        column("intended", pa.string(), "added, removed, or empty without a concept or a strength"),
        column("eligible", pa.bool_(), "whether the concept could be added or removed"),
        column("on_target", pa.bool_(), "whether it was"),
        column("off_target", pa.bool_(), "whether other findings changed"),
        column("off_target_attributes", pa.bool_(), "whether attributes of other findings changed"),
        column("off_target_extent", pa.float64(), "by how much other findings changed, weighed by size and certainty"),
        column("no_change", pa.bool_(), "whether no finding changed"),
        column("identical", pa.bool_(), "whether the texts are equal"),
        column("degenerate", pa.string(), "why it is no report; empty if it is one"),
        column("added", _STRINGS, "findings"),
        column("removed", _STRINGS, "findings"),
        column("changed", _STRINGS, "findings"),
        column("concepts", _STRINGS, "concepts of the study that changed, with + or - before the name"),
        column("edit_distance", pa.int32(), "words"),
        column("repetition", pa.float64(), "share of runs of four words that occurred before"),
        column("mean_nll", pa.float64(), "nats per token, under the unsteered model"),
        column("nll_change", pa.float64(), "mean_nll minus that of the unsteered report"),
        *(column(f"quality_{name}", pa.float64(), meaning) for name, meaning in _QUALITY.items()),
        *(
            column(f"quality_{name}_change", pa.float64(), f"quality_{name} minus that of the unsteered report")
            for name in _QUALITY
        ),
        column("words", pa.int32(), "length of the longer of the two reports"),
        column("length", pa.float64(), "words of the steered report for each of the unsteered one"),
        column("format_kept", pa.bool_(), "whether it is whole sentences, or the unsteered one is not"),
        column("history", pa.float64(), "share of its words that compare with an earlier study"),
        column("history_before", pa.float64(), "that of the unsteered report"),
        *(column(f"history_{kind}", pa.float64(), f"that of its words of the class {kind}") for kind in PHRASES),
        *(column(f"judge_{name}", pa.int32(), meaning) for name, meaning in _JUDGED.items()),
    ]
)


class EvaluateSection(Section, name="evaluate"):
    """How steered reports are compared with unsteered ones."""

    bootstrap: int = setting(1000, "Resamples of the studies for each interval.", ge=1)
    judge: Literal["none", "llm"] = setting(
        "none", "Who compares the reports besides the labeller: nobody, or the language model of the judge section."
    )
    metrics: tuple[str, ...] = setting(
        (),
        "Published metrics by which reports at the best strengths, and the same studies' unsteered ones, are compared "
        "with reference reports: of radeval (pip install 'maira-jax[metrics]'), or radmatch (pip install "
        "'maira-jax[radmatch]'), which asks the language model of the judge section.",
        choices=lambda: reference_metrics.METRICS,
    )
    judge_studies: int = setting(
        20, "Number of studies, from the first, whose reports the language model compares.", ge=1
    )


def run(config: ml_collections.ConfigDict, workdir: Path) -> dict[str, Any]:
    """Compares every steered report of a sweep with its original.

    Writes `evaluation/NAME/results.parquet`, one row per generation (see `SCHEMA`), and
    `evaluation/NAME/summary.json`: `rates` by method, strength and concept ("all": pooled), `best` strengths
    by concept, method and intended effect, the `headline`, which pools the latter over concepts, `above_random`, what
    each method has there more than random directions, and `selection`, by rule of `steer.select` what
    `selection_rates` gives; with `evaluate.metrics`, `metrics`: what `steer.reference_metrics.published` gives.

    Returns:
      The number of generations, and of those that are degenerate.

    Raises:
      UserError: a field of `config.evaluate` is out of range, or the generations cannot be read.
    """
    section, name = EvaluateSection.of(config), SteerSection.of(config).name
    client = ChatClient.open(config, workdir) if section.judge == "llm" else None
    identity: dict[str, Any] = {"evaluate": section.deciding(), "seed": config.seed}
    if client:
        identity["judge"] = client.section.deciding() | {"prompts": [comparison.PROMPT.stem]}
    stage = Stage(workdir, f"{FOLDER}/{name}", identity, inputs=(folder(name),), config=config, replaces=True)
    with contextlib.closing(client) if client else contextlib.nullcontext(), stage:
        if stage.finished:
            return stage.manifest["counts"]
        source = Path(workdir) / folder(name)
        lines = jsonl.read(
            source / GENERATIONS, "steer again", required=("study_id", "direction", "strength", "settings")
        )
        rows = [result_row(*numbered) for numbered in enumerate(progress(lines, unit="report", desc="evaluate"))]
        references = _references(config, {row["study_id"] for row in rows})
        _add_quality(rows, lines, references)
        _add_changes(rows)
        if client:
            _compare(client, rows, lines, files.read_json(source / DIRECTIONS), section.judge_studies)
        with files.atomic_path(stage.dir / RESULTS) as path:
            pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), path)
        summary = {"definitions": __doc__} | summarise(rows, section.bootstrap, config.seed)
        scores = pq.read_table(source / SELECTION).to_pylist()
        summary["selection"] = selection_rates(rows, scores, section.bootstrap, config.seed)
        if section.metrics:
            pairs = _pairs(rows, lines, references, config.seed)
            of_judge = functools.partial(JudgeSection.of, config)
            records = stage.dir / "radmatch"
            summary["metrics"] = reference_metrics.published(section.metrics, pairs, of_judge, records, config.seed)
        files.write_json(stage.dir / SUMMARY, summary)
        stage.finish({"generations": len(rows), "degenerate": sum(bool(row["degenerate"]) for row in rows)})
        return stage.manifest["counts"]


def _references(config: ml_collections.ConfigDict, wanted: Collection[str]) -> dict[str, str]:
    """The reports that the studies came with, by study; none, and a sentence why, where studies cannot be read."""
    manifest_path = SteerSection.of(config).manifest
    try:
        if manifest_path:
            studies: Iterable[Study] = manifest.read(Path(manifest_path).expanduser())
        else:
            studies = load_studies(config.studies)
    except UserError as error:
        print(f"evaluate: steered reports are not compared with reference reports: {error}", file=sys.stderr)
        return {}
    return {
        study.study_id: study.findings
        for study in studies
        if study.study_id in wanted and study.findings and study.findings_origin in _REFERENCES
    }


def _add_quality(
    rows: Sequence[dict[str, Any]], lines: Sequence[dict[str, Any]], references: Mapping[str, str]
) -> None:
    for row, line in zip(rows, lines, strict=True):
        reference = references.get(row["study_id"])
        if reference is not None:
            quality = ReportQuality.of(reference, line["steered"])
            row |= {f"quality_{name}": value for name, value in quality._asdict().items()}


def _pairs(
    rows: Sequence[dict[str, Any]], lines: Sequence[dict[str, Any]], references: Mapping[str, str], seed: int
) -> dict[str, list[reference_metrics.SteeredPair]]:
    """By method the undamaged reports at the best strengths, with their studies' unsteered and reference reports.

    Raises:
      UserError: no study has a reference report.
    """
    if not references:
        raise UserError("evaluate.metrics needs reference reports, and no study has one: leave it empty")
    return {
        method: [
            reference_metrics.SteeredPair(
                row["study_id"],
                references[row["study_id"]],
                lines[row["line"]]["original"],
                lines[row["line"]]["steered"],
            )
            for row in own
            if row["study_id"] in references and not row["degenerate"]
        ]
        for method, own in reported_rows(rows, seed).items()
    }


def _add_changes(rows: Sequence[dict[str, Any]]) -> None:
    """Adds what likelihood and quality have gained over those of the study's unsteered report."""
    unsteered = {row["study_id"]: row for row in rows if row["method"] == NONE}
    names = {"mean_nll": "nll_change"} | {f"quality_{name}": f"quality_{name}_change" for name in _QUALITY}
    for row in rows:
        before = unsteered.get(row["study_id"], {})
        for name, change in names.items():
            own, other = row.get(name), before.get(name)
            row[change] = None if own is None or other is None else own - other


def _compare(
    client: ChatClient,
    rows: Sequence[dict[str, Any]],
    lines: Sequence[dict[str, Any]],
    directions: Sequence[dict[str, Any]],
    n_studies: int,
) -> None:
    """Adds a language model's comparisons to the rows of the first `n_studies` studies."""
    known = {direction["key"]: direction["target"] for direction in directions}
    chosen = set(list(dict.fromkeys(row["study_id"] for row in rows))[:n_studies])
    asked, pairs = [], []
    for row, line in zip(rows, lines, strict=True):
        target = known.get(row["direction"])
        explanation = target and (target["explanation"] or target["concept"])
        if row["study_id"] in chosen and explanation:
            asked.append(row)
            pairs.append(comparison.ReportPair(explanation, line["original"], line["steered"]))
    with client.counting() as count:
        deque(comparison.compare(client, pairs), maxlen=0)
    client.announce(count, 1.0)
    for row, answer in zip(asked, comparison.compare(client, pairs), strict=True):
        if answer:
            row |= {f"judge_{name}": value for name, value in answer._asdict().items()}


def result_row(number: int, line: dict[str, Any]) -> dict[str, Any]:
    """The row of `SCHEMA` for one generation."""
    settings, strength = line["settings"], line["strength"]
    return {
        "line": number,
        "study_id": line["study_id"],
        "direction": line["direction"],
        "method": settings["method"],
        "concept": settings["concept"],
        "feature": settings["feature"],
        "strength": strength,
        "mean_nll": line.get("mean_nll"),
    } | outcome(
        line["original"],
        line["steered"],
        settings["concept"],
        strength,
        finished=line["finished"],
        finite=line.get("finite", True),
        other_concepts=settings.get("other_concepts", ()),
    )

"""The localize stage: where in the model, and at which tokens, each concept can be read and can be written."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from interp.features.concepts import StudyLabels
from maira_jax.checkpoint.convert import ModelSection
from maira_jax.run import files, jsonl
from maira_jax.run.columns import column
from maira_jax.run.config import RunSection
from maira_jax.run.stages.stage import Stage
from steer.config import SteerSection
from steer.localize import reading, writing
from steer.localize.curve import svg
from steer.localize.plan import LocalizePlan, budget, load
from steer.localize.reading import ReadingScore, ReadModel
from steer.localize.recommendation import PointFigures, recommend
from steer.localize.section import LocalizePoint, LocalizeSection
from steer.localize.writing import LostShare, PointMeans, WritingScore
from steer.stage import GENERATIONS, estimate

FOLDER = "localize"
SITES, SUMMARY, CURVE = "sites.parquet", "summary.json", "curve.svg"
SCHEMA = pa.schema(
    [
        column("site", pa.string(), "of the residual stream"),
        column("depth", pa.int32(), "blocks of the language model before the site; below 0 in front of it"),
        column("section", pa.string(), "of the prompt: the tokens that are read and edited"),
        column("concept", pa.string(), "that is read and written"),
        column("read_auroc", pa.float64(), "of a dense probe on held-out studies; null where nothing could be scored"),
        column("read_f1", pa.float64(), "of the same probe"),
        column("read_sae_auroc", pa.float64(), "of a probe on a few features; null where there is no autoencoder"),
        column("read_sae_f1", pa.float64(), "of the same probe"),
        column("write_strength", pa.float64(), "times the difference of means, chosen on half of the studies"),
        column("write_on_target", pa.float64(), "share of the reports without the concept that get it, undamaged"),
        column("write_on_target_low", pa.float64(), "lower end of its 95 % interval"),
        column("write_on_target_high", pa.float64(), "upper end of its 95 % interval"),
        column("write_off_target", pa.float64(), "share of the reports in which other findings change"),
        column("write_no_change", pa.float64(), "share of the reports in which no finding changes"),
        column("write_degenerate", pa.float64(), "share of the reports that are none"),
        column("n", pa.int32(), "reports that these are shares of"),
        column(
            "ablate_lost",
            pa.float64(),
            "share of the reports with the concept that lose it with these tokens ablated",
        ),
        column("ablate_n", pa.int32(), "reports that this is a share of"),
        column("ablate_patches_lost", pa.float64(), "the same with only the patches in a box of the concept ablated"),
        column("ablate_patches_n", pa.int32(), "reports that this is a share of"),
    ]
)


def run(config: ml_collections.ConfigDict, workdir: Path) -> dict[str, Any]:
    """Measures every site and section of `config.localize`.

    Writes `localize/`: `sites.parquet` (see `SCHEMA`), `summary.json` (by site and section the means over concepts, and
    the recommendation), `curve.svg`, and `generations.jsonl` with all reports, in the form of the steer stage.
    A killed run resumes with the batches that are missing.

    Returns:
      The counts of the manifest. With `localize.dry_run` nothing is written, and it is what `budget` and
      `steer.stage.estimate` return.

    Raises:
      UserError: a field of `config.localize` is out of range, no concept can be measured, or an input is not finished.
    """
    section, workdir = LocalizeSection.of(config), Path(workdir)
    if section.dry_run:
        return _estimate(config, workdir)
    identity = {"localize": section.deciding(), "studies": config.studies.to_dict(), "seed": config.seed}
    identity["max_new_tokens"] = SteerSection.of(config).max_new_tokens
    identity["weights"] = ModelSection.of(config).weights
    computing = section.computing() | {"mesh": RunSection.of(config).mesh}
    inputs = ("model", "sae") if section.autoencoder else ("model",)
    with Stage(workdir, FOLDER, identity, inputs=inputs, computing=computing, config=config) as stage:
        if stage.finished:
            return stage.manifest["counts"]
        model, plan = load(config, workdir)
        counted = budget(plan)
        print(f"localize: {_sentence(counted)}", file=sys.stderr)
        rows, summary = _measure(model, plan, stage.dir)
        with files.atomic_path(stage.dir / SITES) as path:
            pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), path)
        with files.atomic_path(stage.dir / CURVE) as path:
            path.write_text(svg(summary["points"]), encoding="utf-8")
        files.write_json(stage.dir / SUMMARY, summary)
        stage.finish(counted | {"site": summary["site"], "section": summary["section"]})
        print(f"localize: {summary['recommendation']}", file=sys.stderr)
        return stage.manifest["counts"]


def _sentence(counted: Mapping[str, int]) -> str:
    return (
        f"{counted['studies_read']:,} studies are read in {counted['passes']:,} passes, and {counted['reports']:,} "
        f"reports written, for {counted['prompts_read_again']:,} of which the prompt is read again, edited"
    )


def _estimate(config: ml_collections.ConfigDict, workdir: Path) -> dict[str, Any]:
    """What `budget` counts, and the longest time that writing takes."""
    model, plan = load(config, workdir)
    groups = plan.groups()
    counted: dict[str, Any] = budget(plan)
    nothing = StudyLabels((), np.zeros((0, 0), bool), np.zeros((0, 0), bool))
    seconds = 0
    for group in groups:
        width = getattr(model.cfg, "vision" if group.points[0].site.tower == "vision" else "text").hidden_size
        means = {point: PointMeans(np.zeros((0, width), np.float32), nothing) for point in group.points}
        rows = group.rows(plan.concepts, plan.section.strengths, means, width)
        seconds += estimate(writing.sweep_of(group, model.params, model.cfg, model.folder, rows, 0))["seconds_at_most"]
    return counted | {"writing_seconds_at_most": seconds}


def _measure(model: ReadModel, plan: LocalizePlan, folder: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The rows of the table, and the summary."""
    parts = folder / jsonl.PARTS
    means, peaks = reading.read_studies(model, plan.requests, plan.points, plan.section, parts / "reading")
    of_points = {point: _point_means(x, plan) for point, x in means.items()}
    lines: dict[str, list[dict[str, Any]]] = {}
    for group in plan.groups():
        width = len(of_points[group.points[0]].mean)
        rows = group.rows(plan.concepts, plan.section.strengths, of_points, width)
        sweep = writing.sweep_of(group, model.params, model.cfg, model.folder, rows, plan.seed)
        lines[group.name] = writing.write_group(parts / group.name, sweep)
    with files.atomic_path(folder / GENERATIONS) as path, path.open("w", encoding="utf-8") as file:
        file.writelines(jsonl.line(line, sort_keys=True) for own in lines.values() for line in own)
    table: list[dict[str, Any]] = []
    figures = []
    for point in plan.points:
        rows_of_point, of_point = _point(point, plan, means[point], peaks.get(point), lines)
        table += rows_of_point
        figures.append(of_point)
    return table, recommend(figures) | {"concepts": plan.concepts}


def _point_means(x: np.ndarray, plan: LocalizePlan) -> PointMeans:
    """The fitted studies that have such tokens."""
    fitted = np.isfinite(x).all(1) & ~plan.held_out
    labels = plan.labels
    return PointMeans(x[fitted], StudyLabels(labels.concepts, labels.value[fitted], labels.known[fitted]))


def _point(
    point: LocalizePoint,
    plan: LocalizePlan,
    mean: np.ndarray,
    peak: np.ndarray | None,
    lines: Mapping[str, list[dict[str, Any]]],
) -> tuple[list[dict[str, Any]], PointFigures]:
    """The rows of a point, one per concept, and its figures over all concepts."""
    group = next(group for group in plan.groups() if point in group.points)
    dense = reading.read_dense(mean, plan.labels, plan.held_out, plan.seed)
    sparse: list[ReadingScore | None] = [None] * len(dense)
    if peak is not None:
        sparse = reading.read_features(peak, plan.labels, plan.held_out, plan.section.k)
    scores, pooled = writing.written(lines[group.name], point, plan.section.bootstrap, plan.seed)
    lost = writing.lost(lines[group.name], point, plan.concepts)
    patches: dict[str, LostShare] = {}
    boxed = next((each for each in plan.groups() if each.patches and point in each.points), None)
    if boxed is not None:
        patches = writing.lost(lines[boxed.name], point, plan.concepts, boxed.patches)
    rows = []
    for c, concept in enumerate(plan.concepts):
        row: dict[str, Any] = {
            "site": point.site.name,
            "depth": point.depth,
            "section": point.section,
            "concept": concept,
        }
        for name, score in (("read", dense[c]), ("read_sae", sparse[c])):
            row |= {f"{name}_auroc": score and score.auroc, f"{name}_f1": score and score.f1}
        row |= _written(scores.get(concept))
        for name, share in (("ablate", lost[concept]), ("ablate_patches", patches.get(concept, LostShare(None, 0)))):
            row |= {f"{name}_lost": share.share, f"{name}_n": share.n}
        rows.append(row)
    read = [row["read_auroc"] for row in rows if row["read_auroc"] is not None]
    figures = PointFigures(
        site=point.site.name,
        depth=point.depth,
        section=point.section,
        read_auroc=float(np.mean(read)) if read else None,
        ablate_lost=_pooled_lost(rows, "ablate"),
        ablate_patches_lost=_pooled_lost(rows, "ablate_patches"),
        written=_written(WritingScore(pooled, 1.0) if pooled else None),
    )
    return rows, figures


def _written(score: WritingScore | None) -> dict[str, Any]:
    """The columns of what was written."""
    if score is None or score.strength is None:
        return {"n": 0}
    on_target = score.rates["on_target_of_all"]
    return {
        "write_strength": score.strength,
        "write_on_target": on_target["rate"],
        "write_on_target_low": on_target["low"],
        "write_on_target_high": on_target["high"],
        "write_off_target": score.rates["off_target"]["rate"],
        "write_no_change": score.rates["no_change"]["rate"],
        "write_degenerate": score.rates["degenerate"]["rate"],
        "n": on_target["n"],
    }


def _pooled_lost(rows: list[dict[str, Any]], name: str) -> float | None:
    """The share over the reports of all concepts."""
    n = sum(row[f"{name}_n"] for row in rows)
    return sum(row[f"{name}_lost"] * row[f"{name}_n"] for row in rows if row[f"{name}_n"]) / n if n else None

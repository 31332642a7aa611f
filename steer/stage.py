"""The steer stage: studies x directions x strengths, written by one compiled program."""

import dataclasses
import functools
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from interp.sets import OWN_SET, stage_name
from maira_jax.checkpoint.convert import ModelSection
from maira_jax.errors import UserError
from maira_jax.run import files, jsonl, processes, storage
from maira_jax.run.columns import column
from maira_jax.run.config import RunSection
from maira_jax.run.performance.profile import StepTrace
from maira_jax.run.progress import progress
from maira_jax.run.stages import growth
from maira_jax.run.stages.stage import MANIFEST, Stage, read_manifest
from steer.config import SteerSection
from steer.methods.direction import Direction
from steer.outcome import ADDED, REMOVED
from steer.program.sweep_writer import GenerationRow, SteeredReport, SweepWriter
from steer.selection.choose import SCHEMA as SCORES
from steer.sweep import Sweep

ReportKey = tuple[str, str, float]  # study, direction, strength

_LISTS = ("features", "concepts", "select", "combinations", "methods", "strengths")
_GROWS = {f"steer.{name}": growth.union for name in _LISTS} | {
    "steer.studies": growth.largest,
    "steer.manifest": growth.newest,
    "manifest_digest": growth.newest,
    "interpreted": growth.newest,
}
GENERATIONS = "generations.jsonl"
DIRECTIONS = "directions.json"
SELECTION = "selection.parquet"
SETS = "sets.parquet"


def folder(name: str) -> str:
    """The folder of the sweep called `name` in its run directory."""
    return f"steer/{name}"


# A line of generations.jsonl.
LINES = pa.schema(
    [
        column("study_id", pa.string(), "the study"),
        column("prompt", pa.string(), "a hash of what the model was shown of it, without an added sentence"),
        column("direction", pa.string(), "key of the direction"),
        column("strength", pa.float64(), "how strongly, in its units"),
        column("original", pa.string(), "the report at strength 0, by the same program"),
        column("steered", pa.string(), "the report at this strength"),
        column("n_tokens", pa.int32(), "length of the steered report"),
        column("finished", pa.bool_(), "whether it ended by itself"),
        column("finite", pa.bool_(), "whether all its tokens were chosen from finite logits"),
        column("mean_nll", pa.float64(), "its mean negative log-likelihood under the unsteered model, nats per token"),
        column("settings", pa.struct([]), "method, concepts, feature, unit and its size, site, positions, sampling"),
    ]
)


# A row of sets.parquet.
SET_ROWS = pa.schema(
    [
        column("direction", pa.string(), "key of a direction that sets features"),
        column("method", pa.string(), "of steering"),
        column("concept", pa.string(), "that the features are set for"),
        column("intended", pa.string(), "added or removed: what setting them is to do to the concept"),
        column("rank", pa.int32(), "among the features of the set; of a smallest set 1 is the most changed one"),
        column("feature", pa.int32(), "that is set"),
        column("value", pa.float64(), "that it is set to at a strength of 1, or of -1"),
    ]
)


def input_stages(section: SteerSection) -> tuple[str, ...]:
    """The stages that a sweep reads."""
    if section.sae:
        return ("model", "activations")
    return tuple(dict.fromkeys(("model", "activations", "sae", OWN_SET, stage_name(section.set))))


def run(config: ml_collections.ConfigDict, workdir: Path) -> dict[str, Any]:
    """Writes steered reports.

    Writes `steer/NAME/`: `directions.json` (each direction with its target and the size of its unit),
    `directions.npy` (their vectors, in the same order), `sets.parquet` (the features that directions set),
    `selection.parquet` (the scores of the features that they were chosen from) and `generations.jsonl`, one line per
    report (see `LINES`).

    The lines are study by study in the order of `plan_rows`. The processes of a run take batches of studies in turn,
    each on its own devices; the first one measures the directions. A killed run resumes with the batches that are
    missing. In the end the file is the same, for any number of processes. A finished sweep continues with the features,
    strengths, methods and studies that are asked for in addition.

    Returns:
      The counts of the manifest. With `steer.dry_run` nothing is written, and it is what `estimate` returns.

    Raises:
      UserError: see `Sweep.load`.
    """
    section, workdir = SteerSection.of(config), Path(workdir)
    if section.dry_run:
        for name in input_stages(section):
            storage.fetch(workdir / name)
        return processes.first_only(lambda: estimate(Sweep.load(config, workdir, shared=workdir)))
    inputs, own = input_stages(section), stage_name(section.set)
    sets = tuple(name for name in (OWN_SET, own) if name in inputs)
    identity = _identity(config, section, workdir / own / MANIFEST)
    computing = section.computing() | {"mesh": RunSection.of(config).mesh}
    stage = Stage(workdir, folder(section.name), identity, inputs, computing, config, _GROWS, sets)
    with stage:
        if stage.finished:
            return stage.manifest["counts"]
        config = config.copy_and_resolve_references()
        config.steer.update({name: _tuple(value) for name, value in stage.section["steer"].items()})
        sweep = Sweep.load(config, workdir, shared=stage.dir)
        earlier = _read_earlier(stage.dir, sweep)
        parts = write_parts(stage.dir, sweep, StepTrace.of_run(config, workdir, "steer"), earlier)
        processes.barrier()
        unfinished = 0
        if processes.is_first():
            _save_directions(stage.dir, sweep.directions)
            _write_table(stage.dir / SELECTION, sweep.scores, SCORES)
            _write_table(stage.dir / SETS, _set_rows(sweep.directions), SET_ROWS)
            unfinished = _join(parts, earlier, sweep, stage.dir / GENERATIONS)
        counts = {
            "studies": len(sweep.studies),
            "directions": len(sweep.directions),
            "strengths": len(sweep.section.nonzero_strengths),
            "generations": sweep.n_generations,
            "unfinished": unfinished,
        }
        stage.finish(counts)
        return stage.manifest["counts"]


def _identity(config: ml_collections.ConfigDict, section: SteerSection, interpretations: Path) -> dict[str, Any]:
    """What decides the result of a sweep; `interpretations` is the manifest of those that features are matched in."""
    identity = {"steer": section.deciding(), "studies": config.studies.to_dict(), "seed": config.seed}
    identity["weights"] = ModelSection.of(config).weights
    for name in ("sae", "manifest"):
        path = getattr(section, name)
        if path:  # the content decides the result, not only its path
            identity[f"{name}_digest"] = files.content_digest(Path(path).expanduser())
    storage.fetch(interpretations)
    if section.match and interpretations.is_file():  # among more explanations, others may match
        found = read_manifest(interpretations)
        identity["interpreted"] = files.digest([found["section"], found["counts"]])
    return identity


def estimate(sweep: Sweep) -> dict[str, Any]:
    """The number of reports of a sweep, and the memory and time that it takes, measured on a few tokens.

    The time is an upper bound: every report as long as it may be, one batch after the other. Compiling is not counted.
    """
    writer, batch_studies = sweep.writer, sweep.section.batch_studies
    cost = writer.measure(range(min(batch_studies, len(sweep.studies))))
    batches = -(-len(sweep.studies) // batch_studies)
    slots, report = writer.shape.slots, sweep.section.max_new_tokens * cost.token  # seconds of the longest reports
    steered, prompted = -(-len(writer.edits.site) // slots), -(-len(writer.sentences) // slots)
    seconds = cost.prefill + steered * (cost.row_prefill + report) + prompted * (slots * cost.prefill + report)
    return {
        "generations": sweep.n_generations,
        "reports_together": batch_studies * slots,
        "memory_gib": round(min(sweep.section.workers, batches) * cost.bytes / 2**30, 3),
        "seconds_at_most": round(batches * seconds),
        "tokens_per_second": round(batch_studies * slots / cost.token),
    }


def _save_directions(directory: Path, directions: Sequence[Direction]) -> None:
    described = [
        {
            "key": direction.key,
            "method": direction.method,
            "unit_size": direction.intervention.unit_size,
            "other_concepts": direction.other_concepts,
            "target": dataclasses.asdict(direction.target) if direction.target else None,
        }
        for direction in directions
    ]
    files.write_json(directory / DIRECTIONS, described)
    with files.atomic_path(directory / "directions.npy") as path, path.open("wb") as file:
        np.save(file, np.stack([direction.intervention.vector for direction in directions]))


def _write_table(path: Path, rows: Sequence[Mapping[str, Any]], schema: pa.Schema) -> None:
    with files.atomic_path(path) as temporary:
        pq.write_table(pa.Table.from_pylist(list(rows), schema=schema), temporary)


def _set_rows(directions: Sequence[Direction]) -> list[dict[str, Any]]:
    """Rows of `SET_ROWS`."""
    found = []
    for direction in directions:
        for intended, strength in ((ADDED, 1.0), (REMOVED, -1.0)):
            clamp = direction.intervention.clamp_at(strength)
            if clamp is None or (clamp.features < 0).any() or strength not in direction.strengths((1.0, -1.0)):
                continue
            found += [
                {
                    "direction": direction.key,
                    "method": direction.method,
                    "concept": direction.target.concept if direction.target else "",
                    "intended": intended,
                    "rank": rank,
                    "feature": int(feature),
                    "value": float(strength * value),
                }
                for rank, (feature, value) in enumerate(zip(clamp.features, clamp.value, strict=True), start=1)
            ]
    return found


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _read_earlier(directory: Path, sweep: Sweep) -> dict[ReportKey, dict[str, Any]]:
    """The lines that a smaller sweep, or an attempt at one, has left.

    Raises:
      UserError: they are of studies that are not steered any more.
    """
    numbers = {study.study_id: number for number, study in enumerate(sweep.studies)}
    shown = functools.cache(sweep.writer.prompts.digest)
    found = {}
    for line in jsonl.read_earlier(directory, GENERATIONS, "steer again"):
        name = line["study_id"]
        if name not in numbers:
            raise UserError(
                f"{directory} has reports of study {name}, which is not among the {len(numbers)} that are to be "
                "steered: add it to them, or choose another --sweep"
            )
        if line["prompt"] == shown(numbers[name]):
            found[name, line["direction"], line["strength"]] = line
    return found


def _batches(sweep: Sweep, earlier: Collection[ReportKey]) -> dict[str, tuple[SweepWriter, range | list[int]]]:
    """What is missing: the name of each part, who writes it and the studies; studies that lack the same go together."""
    lacking: dict[tuple[int, ...], list[int]] = {}
    for study in range(len(sweep.studies)):
        keys = [_key(study, row, sweep) for row in sweep.writer.rows]
        missing = tuple(number for number, key in enumerate(keys) if key not in earlier)
        lacking.setdefault(missing, []).append(study)
    found: dict[str, tuple[SweepWriter, range | list[int]]] = {}
    size = sweep.section.batch_studies
    for missing, studies in lacking.items():
        if not missing:
            continue
        rows = [sweep.writer.rows[number] for number in dict.fromkeys((0, *missing))]  # 0 is the unsteered one
        writer = sweep.writer if len(rows) == len(sweep.writer.rows) else sweep.writer.of_rows(rows)
        for start in range(0, len(studies), size):
            found[f"{studies[start]:06d}-{size}"] = writer, studies[start : start + size]
    return found


def write_parts(
    directory: Path, sweep: Sweep, trace: StepTrace, earlier: Collection[ReportKey] = ()
) -> jsonl.PartFiles:
    """Writes this process's share of the parts that are missing, one for each batch of studies."""
    batches = _batches(sweep, earlier)
    expected = {
        part: [_known(study, row, sweep) for study in studies for row in writer.rows]
        for part, (writer, studies) in batches.items()
    }
    parts = jsonl.PartFiles(directory, expected, "steer again")
    mine = [batches[part] for part in parts.mine]
    # A decoding step is many small operations, each of which one processor core does: parallel batches use the others.
    pool = ThreadPoolExecutor(sweep.section.workers)
    total = parts.n_found + parts.n_mine
    with progress(total=total, initial=parts.n_found, unit="report", desc="steer", shared=True) as bar:
        try:
            written = pool.map(lambda batch: batch[0].write(batch[1], bar.update), mine)  # what waits is text alone
            for part, reports in trace.over(zip(parts.mine, written, strict=True)):
                writer, studies = batches[part]
                own = zip(studies, reports, strict=True)
                parts.write(part, [line for study, lines in own for line in _lines(study, lines, sweep, writer)])
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # after an error, nobody wants what is under way
    return parts


def _join(parts: jsonl.PartFiles, earlier: Mapping[ReportKey, dict[str, Any]], sweep: Sweep, path: Path) -> int:
    """Writes the file of all lines and returns how many reports did not end by themselves."""
    lines = {(line["study_id"], line["direction"], line["strength"]): line for line in parts.records()}
    lines |= earlier
    unfinished = 0
    with files.atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for study in range(len(sweep.studies)):
            original = lines[_key(study, sweep.writer.rows[0], sweep)]["steered"]
            for row in sweep.writer.rows:
                line = lines[_key(study, row, sweep)] | {"original": original}
                file.write(jsonl.line(line, sort_keys=True))
                unfinished += not line["finished"]
    return unfinished


def _known(study: int, row: GenerationRow, sweep: Sweep) -> dict[str, Any]:
    """What is known of a line before its report is written."""
    return {"study_id": sweep.studies[study].study_id, "direction": row.direction.key, "strength": row.strength}


def _key(study: int, row: GenerationRow, sweep: Sweep) -> ReportKey:
    return sweep.studies[study].study_id, row.direction.key, row.strength


def _lines(study: int, reports: Sequence[SteeredReport], sweep: Sweep, writer: SweepWriter) -> list[dict[str, Any]]:
    """The lines of one study, one per row; the first row is the unsteered report."""
    shown = {"prompt": writer.prompts.digest(study), "original": reports[0].text}
    pairs = zip(writer.rows, reports, strict=True)
    return [_known(study, row, sweep) | shown | _line(row, report, sweep) for row, report in pairs]


def _line(row: GenerationRow, report: SteeredReport, sweep: Sweep) -> dict[str, Any]:
    direction, section = row.direction, sweep.section
    return {
        "steered": report.text,
        "n_tokens": report.tokens,
        "finished": report.finished,
        "finite": report.finite,
        "mean_nll": report.mean_nll if np.isfinite(report.mean_nll) else None,
        "settings": {
            "method": direction.method,
            "concept": direction.target.concept if direction.target else "",
            "other_concepts": direction.other_concepts,
            "feature": direction.target.feature if direction.target else None,
            "unit": section.unit,
            "unit_size": direction.intervention.unit_size,
            "site": row.site.name,
            "positions": section.positions,
            "sampling": section.sampling,
            "max_new_tokens": section.max_new_tokens,
        },
    }

"""The steer stage: studies x directions x strengths, written by one compiled program."""

import dataclasses
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np

from maira_jax.checkpoint.convert import ModelSection
from maira_jax.run import files, jsonl
from maira_jax.run.config import RunSection
from maira_jax.run.profile import StepTrace
from maira_jax.run.progress import progress
from maira_jax.run.stage import Stage
from steer.config import SteerSection
from steer.methods.direction import Direction
from steer.program.sweep_writer import GenerationRow, SteeredReport
from steer.sweep import Sweep

GENERATIONS = "generations.jsonl"
DIRECTIONS = "directions.json"


def folder(name: str) -> str:
    """The folder of the sweep called `name` in its run directory."""
    return f"steer/{name}"


def input_stages(section: SteerSection) -> tuple[str, ...]:
    """The stages that a sweep reads."""
    return ("model", "activations") if section.sae else ("model", "activations", "sae", "interp")


def run(config: ml_collections.ConfigDict, workdir: Path) -> dict[str, Any]:
    """Writes steered reports.

    Writes `steer/NAME/`: `directions.json` (each direction with its target and the size of its unit),
    `directions.npy` (their vectors, in the same order) and `generations.jsonl`, one line per report:

      study, prompt      the study's id, and a hash of what the model was shown of it, without an added sentence
      direction, strength   the key of the direction, and how strongly, in its units
      original, steered  the reports at strength 0, by the same program, and at this strength
      tokens, finished   of the steered report: its length, and whether it ended by itself
      finite             whether all its tokens were chosen from finite logits
      mean_nll           its mean negative log-likelihood under the unsteered model, nats per token
      settings           method, concepts, feature, unit and its size, site, edited positions, sampling

    The lines are study by study in the order of `plan_rows`: a killed run resumes after the last studies that it
    finished, and ends with the same file.

    Returns:
      The counts of the manifest. With `steer.dry_run` nothing is written, and it is what `estimate` returns.

    Raises:
      UserError: see `Sweep.load`.
    """
    section, workdir = SteerSection.of(config), Path(workdir)
    if section.dry_run:
        return estimate(Sweep.load(config, workdir))
    identity = {"steer": section.deciding(), "studies": config.studies.to_dict(), "seed": config.seed}
    identity["weights"] = ModelSection.of(config).weights
    for name in ("sae", "manifest"):
        path = getattr(section, name)
        if path:  # the content decides the result, not only its path
            identity[f"{name}_digest"] = files.content_digest(Path(path).expanduser())
    computing = section.computing() | {"mesh": RunSection.of(config).mesh}
    stage = Stage(workdir, folder(section.name), identity, inputs=input_stages(section), computing=computing)
    with stage:
        if stage.finished:
            return stage.manifest["counts"]
        sweep = Sweep.load(config, workdir)
        _save_directions(stage.dir, sweep.directions)
        unfinished = _write(stage.dir / GENERATIONS, sweep, StepTrace.of_run(config, workdir, "steer"))
        counts = {
            "studies": len(sweep.studies),
            "directions": len(sweep.directions),
            "strengths": len(section.nonzero_strengths),
            "generations": sweep.n_generations,
            "unfinished": unfinished,
        }
        stage.finish(counts)
        return counts


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


def _write(path: Path, sweep: Sweep, trace: StepTrace) -> int:
    """Writes what is missing of the file and returns how many reports did not end by themselves."""
    writer, batch_studies = sweep.writer, sweep.section.batch_studies
    left = _resume(path, sweep)
    unfinished = sum(not line["finished"] for line in left)
    missing = range(len(left) // len(writer.rows), len(sweep.studies))
    batches = [missing[start : start + batch_studies] for start in range(0, len(missing), batch_studies)]
    # A decoding step is many small operations, each of which one processor core does: parallel batches use the others.
    pool = ThreadPoolExecutor(sweep.section.workers)
    with (
        path.open("ab", buffering=0) as file,
        progress(total=sweep.n_generations, initial=len(left), unit="report", desc="steer") as bar,
    ):
        try:
            written = pool.map(lambda batch: writer.write(batch, bar.update), batches)  # what waits is text alone
            for batch, reports in trace.over(zip(batches, written, strict=True)):
                lines = [line for study, own in zip(batch, reports, strict=True) for line in _lines(study, own, sweep)]
                unfinished += sum(not line["finished"] for line in lines)
                jsonl.append(file, lines, sort_keys=True)
        finally:
            pool.shutdown(cancel_futures=True)
    return unfinished


def _resume(path: Path, sweep: Sweep) -> list[dict[str, Any]]:
    """The lines that an earlier attempt left, of whole batches of studies."""
    rows, studies, batch_studies = sweep.writer.rows, sweep.studies, sweep.section.batch_studies
    expected = [
        {"study": study.study_id, "direction": row.direction.key, "strength": row.strength}
        for study in studies
        for row in rows
    ]
    starts = range(0, len(studies), batch_studies)
    sizes = [len(studies[start : start + batch_studies]) * len(rows) for start in starts]
    return jsonl.resume(path, expected, sizes, "steer again")


def _lines(study: int, reports: Sequence[SteeredReport], sweep: Sweep) -> list[dict[str, Any]]:
    """The lines of one study, one per row; the first row is the unsteered report."""
    prompts = sweep.writer.prompts
    known = {"study": prompts.studies[study].study_id, "prompt": prompts.digest(study), "original": reports[0].text}
    return [known | _line(row, report, sweep) for row, report in zip(sweep.writer.rows, reports, strict=True)]


def _line(row: GenerationRow, report: SteeredReport, sweep: Sweep) -> dict[str, Any]:
    direction, section = row.direction, sweep.section
    return {
        "direction": direction.key,
        "strength": row.strength,
        "steered": report.text,
        "tokens": report.tokens,
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
            "site": sweep.writer.site.name,
            "positions": section.positions,
            "sampling": section.sampling,
            "max_new_tokens": section.max_new_tokens,
        },
    }

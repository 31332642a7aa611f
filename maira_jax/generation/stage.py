"""The stage of `launch.generate`: reports, grounded reports or phrase boxes for studies, as JSON Lines."""

import dataclasses
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import ml_collections

from maira_jax.checkpoint import store
from maira_jax.errors import UserError
from maira_jax.generation import grounding
from maira_jax.generation.grounding import Box, GroundedReport, Phrase
from maira_jax.generation.overlay import draw
from maira_jax.generation.report_writer import GeneratedText, ReportWriter
from maira_jax.inputs.batches import GenerationRequest, reporting_request
from maira_jax.inputs.image import ImageConfig, to_grey, width_height
from maira_jax.inputs.prompt import phrase_grounding_prompt
from maira_jax.inputs.tokens import Tokenizer
from maira_jax.run import files, jsonl
from maira_jax.run.progress import progress
from maira_jax.run.stage import Stage
from maira_jax.studies.readers import load_studies
from maira_jax.studies.study import Study

REPORT, GROUNDED, PHRASE = "report", "grounded", "phrase"
# Each task has a folder of its own, so that one run directory can hold all three. The numbers are the longest texts
# that MAIRA-2's model card allows.
FOLDERS = {REPORT: "reports", GROUNDED: "grounded", PHRASE: "phrases"}
_MAX_NEW_TOKENS = {REPORT: 300, GROUNDED: 450, PHRASE: 150}
RESULT, IMAGES = "generations.jsonl", "images"
_UNFINISHED = "unfinished.jsonl"


@dataclasses.dataclass(frozen=True)
class Settings:
    """The `generate` section.

    Attributes:
      task: one of `FOLDERS`.
      phrase: what to locate in every study; empty: each study's own phrase.
      studies: at most so many studies, from the first; None for all.
      batch_size, length_step, max_new_tokens, temperature, top_p: see `ReportWriter`.
      save_images: whether grounded texts are drawn too.
    """

    task: str
    phrase: str
    studies: int | None
    batch_size: int
    length_step: int
    max_new_tokens: int | None
    temperature: float
    top_p: float
    save_images: bool

    @classmethod
    def from_section(cls, section: ml_collections.ConfigDict) -> Self:
        """Reads and checks the section.

        Raises:
          UserError: a field is out of range, or two exclude each other.
        """
        settings = cls(**{field.name: section[field.name] for field in dataclasses.fields(cls)})
        if settings.task not in FOLDERS:
            raise UserError(f"generate.task {settings.task!r} is not one of {', '.join(FOLDERS)}: choose one")
        if settings.phrase and settings.task != PHRASE:
            raise UserError(f"generate.phrase is for generate.task {PHRASE!r}, not {settings.task!r}: change one")
        if settings.save_images and settings.task == REPORT:
            raise UserError(f"generate.save_images draws boxes, which {REPORT!r} has not: set generate.task to another")
        for name in ("studies", "batch_size", "length_step", "max_new_tokens"):
            value = getattr(settings, name)
            if value is not None and value < 1:
                raise UserError(f"generate.{name} is {value}, but must be at least 1: change it")
        if not 0 <= settings.temperature < float("inf"):
            raise UserError(f"generate.temperature is {settings.temperature}, but must be 0 or more: change it")
        if not 0 < settings.top_p <= 1:
            raise UserError(f"generate.top_p is {settings.top_p}, but must be over 0 and at most 1: change it")
        return settings


def run(config: ml_collections.ConfigDict, workdir: Path) -> dict[str, Any]:
    """Writes the texts of `config.generate` for the first `config.generate.studies` of `config.studies`.

    Writes `generations.jsonl` into the task's folder, a line a study in their order:

      study_id             whose it is
      findings             the text, without boxes
      tokens, finished     how many were generated, and whether the text ended by itself
      prompt               the first 16 hex digits of a hash over the prompt's tokens

    and, where boxes were asked for:

      phrase               what was asked for, where one was
      text                 as generated, with its box tokens
      phrases              each with its `text`, its `boxes` ([x_min, y_min, x_max, y_max] in fractions of the current
                           frontal image) and `square_boxes` (of its centre square, which the model sees), or null
      cut                  pieces of `text` that are no whole phrase or box, such as the end of an unfinished one
      width, height        of the current frontal image, in pixels

    The texts do not depend on what was interrupted. `images/` holds a picture a line where they were asked for, which
    can be later.

    Returns:
      What the manifest counts.

    Raises:
      UserError: a field of `config.generate` is out of range, or a study cannot be read or prompted for.
    """
    settings = Settings.from_section(config.generate)
    section = {"generate": config.generate.to_dict(), "studies": config.studies.to_dict(), "seed": config.seed}
    del section["generate"]["save_images"]  # does not change what is written
    with Stage(Path(workdir), FOLDERS[settings.task], section, inputs=("model",)) as stage:
        studies = load_studies(config.studies)[: settings.studies]
        if not stage.finished:
            stage.finish(_generate(stage.dir, settings, studies, Path(workdir) / "model", config.seed))
        (stage.dir / _UNFINISHED).unlink(missing_ok=True)
        if settings.save_images:
            _save_images(stage.dir, studies)
        return stage.manifest["counts"]


def _generate(
    directory: Path, settings: Settings, studies: Sequence[Study], model_dir: Path, seed: int
) -> dict[str, Any]:
    """Writes `RESULT`; returns the counts."""
    tokenizer = Tokenizer.from_dir(model_dir)
    requests = [_request(study, settings, tokenizer) for study in studies]
    params, cfg = store.load(model_dir)
    writer = ReportWriter(
        params, cfg, tokenizer, ImageConfig.from_dir(model_dir), settings.batch_size,
        settings.max_new_tokens or _MAX_NEW_TOKENS[settings.task], settings.length_step,
        settings.temperature, settings.top_p, seed,
    )  # fmt: skip
    records = _write(directory / _UNFINISHED, settings, studies, requests, writer)
    with files.atomic_path(directory / RESULT) as path:
        path.write_text("".join(map(jsonl.line, records)), encoding="utf-8")
    counts = {
        "studies": len(records),
        "tokens": sum(record["tokens"] for record in records),
        "unfinished": sum(not record["finished"] for record in records),
    }
    if settings.task != REPORT:
        phrases = [phrase for record in records for phrase in record["phrases"]]
        counts["phrases"] = len(phrases)
        counts["boxes"] = sum(len(phrase["boxes"] or ()) for phrase in phrases)
        counts["with_text_cut"] = sum(bool(record["cut"]) for record in records)
    return counts


def _request(study: Study, settings: Settings, tokenizer: Tokenizer) -> GenerationRequest:
    if settings.task == PHRASE:
        if study.frontal is None:
            raise UserError(f"study {study.study_id} has no image to locate a phrase in: leave it out")
        phrase = _phrase(study, settings)
        return GenerationRequest(tokenizer.encode(phrase_grounding_prompt(phrase)), (study.frontal,))
    return reporting_request(study, tokenizer, grounded=settings.task == GROUNDED)


def _phrase(study: Study, settings: Settings) -> str:
    phrase = settings.phrase or study.phrase
    if not phrase:
        raise UserError(f"study {study.study_id} has no phrase to locate: give it one, or give --phrase for all")
    return phrase


def _write(
    path: Path,
    settings: Settings,
    studies: Sequence[Study],
    requests: Sequence[GenerationRequest],
    writer: ReportWriter,
) -> list[dict[str, Any]]:
    """The record of each study, in their order; `path` collects them by batches, for a killed run to resume from."""
    plans = writer.plan(requests)
    names = [study.study_id for study in studies]
    identities = [
        {"study_id": name, "prompt": hashlib.sha256(request.encoded.ids.tobytes()).hexdigest()[:16]}
        for name, request in zip(names, requests, strict=True)
    ]
    rows = [row for batch in plans for row in batch.rows]
    expected, sizes = [identities[row] for row in rows], [len(batch.rows) for batch in plans]
    records = dict(zip(rows, jsonl.resume(path, expected, sizes, "generate again"), strict=False))
    missing = [batch for batch in plans if batch.rows[0] not in records]
    with (
        path.open("ab", buffering=0) as file,
        progress(total=len(studies), initial=len(records), unit="study", desc=FOLDERS[settings.task]) as bar,
    ):
        for written in writer.write(requests, names, missing):
            new = {row: identities[row] | _record(studies[row], settings, text) for row, text in written}
            jsonl.append(file, new.values())
            records |= new
            bar.update(len(new))
    return [records[row] for row in range(len(studies))]


def _record(study: Study, settings: Settings, written: GeneratedText) -> dict[str, Any]:
    record: dict[str, Any] = {}
    if settings.task == REPORT:
        record["findings"] = written.text
    else:
        assert study.frontal is not None
        width, height = width_height(study.frontal)
        report = grounding.parse(written.text)
        if settings.task == PHRASE:
            record["phrase"] = _phrase(study, settings)
        record |= {"findings": report.plain, "text": written.text, "phrases": _phrases(report, width, height)}
        record |= {"cut": report.cut, "width": width, "height": height}
    return record | {"tokens": written.tokens, "finished": written.finished}


def _phrases(report: GroundedReport, width: int, height: int) -> list[dict[str, Any]]:
    return [
        {
            "text": phrase.text,
            "boxes": phrase.boxes
            and [dataclasses.astuple(grounding.adjust_to_original(box, width, height)) for box in phrase.boxes],
            "square_boxes": phrase.boxes and [dataclasses.astuple(box) for box in phrase.boxes],
        }
        for phrase in report.phrases
    ]


def image_name(number: int, study_id: str) -> str:
    """File name of the picture of a line (from 0): safe on every file system, whatever the study's id."""
    return f"{number:05}-{re.sub(r'[^A-Za-z0-9_-]', '_', study_id)[:80]}.png"


def _save_images(directory: Path, studies: Sequence[Study]) -> None:
    """Draws the pictures that are missing."""
    for leftover in (directory / IMAGES).glob(".*.tmp"):  # of a run that was killed while it wrote
        files.remove(leftover)
    records = jsonl.read(directory / RESULT, "generate again")
    for number, (study, record) in enumerate(
        progress(zip(studies, records, strict=True), total=len(records), unit="image", desc="draw")
    ):
        path = directory / IMAGES / image_name(number, study.study_id)
        if path.is_file():
            continue
        assert study.frontal is not None
        phrases = [
            Phrase(row["text"], row["boxes"] and tuple(Box(*box) for box in row["boxes"])) for row in record["phrases"]
        ]
        notes = [f"[cut] {piece}" for piece in record["cut"]]
        with files.atomic_path(path) as temporary:
            draw(to_grey(study.frontal), phrases, notes).save(temporary, "PNG")

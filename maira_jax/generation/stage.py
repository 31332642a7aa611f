"""The stage behind `launch.generate`: reports, grounded reports or phrase boxes for studies, as JSON Lines."""

import dataclasses
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import ml_collections
import pyarrow as pa

from maira_jax.checkpoint import store
from maira_jax.checkpoint.convert import ModelSection
from maira_jax.errors import UserError
from maira_jax.generation import grounding
from maira_jax.generation.grounding import GroundedReport, Phrase, PhraseBox
from maira_jax.generation.overlay import draw
from maira_jax.generation.report_writer import GeneratedText, ReportWriter
from maira_jax.inputs.batches import GenerationRequest, reporting_request
from maira_jax.inputs.image import ImageConfig, to_grey, width_height
from maira_jax.inputs.prompt import phrase_grounding_prompt
from maira_jax.inputs.tokens import Tokenizer
from maira_jax.model import maira2
from maira_jax.model.int8 import Weights
from maira_jax.run import files, jsonl, processes, storage
from maira_jax.run.columns import column
from maira_jax.run.config import RunSection, Section, setting
from maira_jax.run.performance.profile import StepTrace
from maira_jax.run.progress import progress
from maira_jax.run.stages import growth
from maira_jax.run.stages.stage import Stage
from maira_jax.studies.readers import load_studies
from maira_jax.studies.study import Study

REPORT, GROUNDED, PHRASE = "report", "grounded", "phrase"
# Each task has a folder of its own, so that one run directory can hold all three. The numbers of tokens are those of
# MAIRA-2's model card.
FOLDERS = {REPORT: "reports", GROUNDED: "grounded", PHRASE: "phrases"}
_MAX_NEW_TOKENS = {REPORT: 300, GROUNDED: 450, PHRASE: 150}
RESULT, IMAGES = "generations.jsonl", "images"

# A line of generations.jsonl, and what it has more where boxes were asked for.
LINES = pa.schema(
    [
        column("study_id", pa.string(), "the study"),
        column("prompt", pa.string(), "the first 16 hex digits of a hash over the prompt's tokens"),
        column("findings", pa.string(), "the text, without boxes"),
        column("n_tokens", pa.int32(), "number of generated tokens"),
        column("finished", pa.bool_(), "whether the text ended by itself"),
    ]
)
_BOX = pa.list_(pa.float64())  # x_min, y_min, x_max, y_max
_PHRASE = pa.struct([("text", pa.string()), ("boxes", pa.list_(_BOX)), ("square_boxes", pa.list_(_BOX))])
BOX_LINES = pa.schema(
    [
        column("phrase", pa.string(), "what was asked for, where one was"),
        column("text", pa.string(), "as generated, with its box tokens"),
        column(
            "phrases",
            pa.list_(_PHRASE),
            "each with its boxes (x_min, y_min, x_max, y_max in fractions of the current frontal image), or null, and "
            "those in its centre square, which the model sees",
        ),
        column("unparsed", pa.list_(pa.string()), "pieces that are no whole phrase or box"),
        column("width", pa.int32(), "of the current frontal image, in pixels"),
        column("height", pa.int32(), "likewise"),
    ]
)


class GenerateSection(Section, name="generate"):
    """Which texts launch.generate writes."""

    task: Literal["report", "grounded", "phrase"] = setting(
        "report", "What is written: reports, reports with bounding boxes, or the boxes of a phrase."
    )
    phrase: str = setting("", "With task phrase: what to locate in every study; empty: each study's own phrase.")
    studies: int | None = setting(None, "At most this many studies, from the first; None: all.", ge=1)
    # Matrix products of another shape round differently: a token with a close second may become that one.
    batch_size: int = setting(32, "Texts written together.", ge=1, decides=False)
    max_new_tokens: int | None = setting(
        None, "Tokens of the longest text; None: as on MAIRA-2's model card, 300, 450 or 150 by task.", ge=1
    )
    temperature: float = setting(
        0.0, "0: always the most likely token; above: tokens are drawn, by the seed and the study's id.", ge=0
    )
    top_p: float = setting(1.0, "Only the most likely tokens that add up to this probability are drawn.", gt=0, le=1)
    save_images: bool = setting(False, "With boxes: each image with its boxes drawn, as PNG.", decides=False)

    def check(self) -> None:
        if self.phrase and self.task != PHRASE:
            raise UserError(f"generate.phrase is for generate.task {PHRASE!r}, not {self.task!r}: change one")
        if self.save_images and self.task == REPORT:
            raise UserError(f"generate.save_images draws boxes, which {REPORT!r} has not: set generate.task to another")


def run(config: ml_collections.ConfigDict, workdir: Path) -> dict[str, Any]:
    """Writes the texts of `config.generate` for the first `config.generate.studies` of `config.studies`.

    Writes `generations.jsonl` into the task's folder, one line per study in their order: `LINES`, and with boxes
    `BOX_LINES`.

    An interrupted run resumes and ends with the same texts; one of more studies continues from those that are there.
    The processes of a run take batches in turn, each on its own devices; the texts are the same for any number of them.
    `images/` holds one picture per line where they are asked for, which can be later.

    Returns:
      What the manifest counts.

    Raises:
      UserError: a field of `config.generate` is out of range, or a study cannot be read or prompted for.
    """
    section, run_section = GenerateSection.of(config), RunSection.of(config)
    weights = ModelSection.of(config).weights
    all_studies = load_studies(config.studies)
    n = min(len(all_studies), section.studies or len(all_studies))
    source = {name: value for name, value in config.studies.to_dict().items() if name != "n"}
    identity = {"generate": section.deciding() | {"studies": n}, "studies": source, "seed": config.seed}
    identity["weights"] = weights
    folder, computing = FOLDERS[section.task], {"generate": section.computing(), "mesh": run_section.mesh}
    grows = {"generate.studies": growth.largest}
    with Stage(Path(workdir), folder, identity, ("model",), computing, config, grows) as stage:
        studies = all_studies[: stage.section["generate"]["studies"]]
        if not stage.finished:
            trace = StepTrace.of_run(config, workdir, "generate")
            counts = _generate(stage.dir, section, studies, Path(workdir) / "model", run_section, weights, trace)
            stage.finish(counts)
        if section.save_images:
            _save_images(stage.dir, studies)
        return stage.manifest["counts"]


def _generate(
    directory: Path,
    section: GenerateSection,
    studies: Sequence[Study],
    model_dir: Path,
    run: RunSection,
    weights: Weights,
    trace: StepTrace,
) -> dict[str, Any]:
    """Writes `RESULT`; returns the counts, on the first process."""
    tokenizer = Tokenizer.from_dir(model_dir)
    requests = [_request(study, section, tokenizer) for study in studies]
    params, cfg = store.load(model_dir, run.mesh, rows=section.batch_size, weights=weights)
    writer = ReportWriter(
        maira2.unstacked(params),
        cfg,
        tokenizer,
        ImageConfig.from_dir(model_dir),
        batch_size=section.batch_size,
        max_new_tokens=section.max_new_tokens or _MAX_NEW_TOKENS[section.task],
        temperature=section.temperature,
        top_p=section.top_p,
        seed=run.seed,
    )
    records = _write(directory, section, studies, requests, writer, trace)
    if not processes.is_first():
        return {}
    with files.atomic_path(directory / RESULT) as path:
        path.write_text("".join(map(jsonl.line, records)), encoding="utf-8")
    counts = {
        "studies": len(records),
        "tokens": sum(record["n_tokens"] for record in records),
        "unfinished": sum(not record["finished"] for record in records),
    }
    if section.task != REPORT:
        phrases = [phrase for record in records for phrase in record["phrases"]]
        counts["phrases"] = len(phrases)
        counts["boxes"] = sum(len(phrase["boxes"] or ()) for phrase in phrases)
        counts["with_unparsed_text"] = sum(bool(record["unparsed"]) for record in records)
    return counts


def _request(study: Study, section: GenerateSection, tokenizer: Tokenizer) -> GenerationRequest:
    if section.task == PHRASE:
        if study.frontal is None:
            raise UserError(f"study {study.study_id} has no image to locate a phrase in: leave it out")
        phrase = _phrase(study, section)
        return GenerationRequest(tokenizer.encode(phrase_grounding_prompt(phrase)), (study.frontal,))
    return reporting_request(study, tokenizer, grounded=section.task == GROUNDED)


def _phrase(study: Study, section: GenerateSection) -> str:
    phrase = section.phrase or study.phrase
    if not phrase:
        raise UserError(f"study {study.study_id} has no phrase to locate: give it one, or give --phrase for all")
    return phrase


def _write(
    directory: Path,
    section: GenerateSection,
    studies: Sequence[Study],
    requests: Sequence[GenerationRequest],
    writer: ReportWriter,
    trace: StepTrace,
) -> list[dict[str, Any]]:
    """The record of each study, in their order, on the first process; each process writes a share of the batches."""
    names = [study.study_id for study in studies]
    identities = [
        {"study_id": name, "prompt": hashlib.sha256(request.encoded.ids.tobytes()).hexdigest()[:16]}
        for name, request in zip(names, requests, strict=True)
    ]
    again = "generate again"
    known = {(record["study_id"], record["prompt"]): record for record in jsonl.read_earlier(directory, RESULT, again)}
    records = {row: known.get((identity["study_id"], identity["prompt"])) for row, identity in enumerate(identities)}
    missing = [row for row, record in records.items() if record is None]
    asked = [requests[row] for row in missing], [names[row] for row in missing]
    plans = {f"{number:06d}": batch for number, batch in enumerate(writer.plan(asked[0]))}
    expected = {part: [identities[missing[row]] for row in batch.rows] for part, batch in plans.items()}
    parts = jsonl.PartFiles(directory, expected, again)
    batches = [plans[part] for part in parts.mine]
    total = parts.n_found + parts.n_mine
    with progress(total=total, initial=parts.n_found, unit="study", desc=FOLDERS[section.task], shared=True) as bar:
        for part, written in zip(parts.mine, writer.write(*asked, batches, trace), strict=True):
            rows = [(missing[row], text) for row, text in written]
            parts.write(part, [identities[row] | _record(studies[row], section, text) for row, text in rows])
            bar.update(len(written))
    processes.barrier()
    if not processes.is_first():
        return []
    rows_of_parts = (missing[row] for batch in plans.values() for row in batch.rows)
    records |= dict(zip(rows_of_parts, parts.records(), strict=True))
    return [record for record in records.values() if record is not None]


def _record(study: Study, section: GenerateSection, written: GeneratedText) -> dict[str, Any]:
    record: dict[str, Any] = {}
    if section.task == REPORT:
        record["findings"] = written.text
    else:
        assert study.frontal is not None
        width, height = width_height(study.frontal)
        report = grounding.parse(written.text)
        if section.task == PHRASE:
            record["phrase"] = _phrase(study, section)
        record |= {"findings": report.plain, "text": written.text, "phrases": _phrases(report, width, height)}
        record |= {"unparsed": report.unparsed, "width": width, "height": height}
    return record | {"n_tokens": written.tokens, "finished": written.finished}


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
    """Draws the pictures that are missing, each process a share of them."""
    storage.fetch(directory)
    records = jsonl.read(directory / RESULT, "generate again")[: len(studies)]
    pictures = list(enumerate(zip(studies, records, strict=True)))[processes.index() :: processes.count()]
    for number, (study, record) in progress(pictures, unit="image", desc="draw", shared=True):
        path = directory / IMAGES / image_name(number, study.study_id)
        if path.is_file():
            continue
        assert study.frontal is not None
        phrases = [
            Phrase(row["text"], row["boxes"] and tuple(PhraseBox(*box) for box in row["boxes"]))
            for row in record["phrases"]
        ]
        notes = [f"[unparsed] {piece}" for piece in record["unparsed"]]
        with files.atomic_path(path) as temporary:
            draw(to_grey(study.frontal), phrases, notes).save(temporary, "PNG")

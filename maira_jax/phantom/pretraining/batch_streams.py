"""Endless batches of static shapes, in an order that depends on the seed alone and can be resumed anywhere."""

import random
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from maira_jax.errors import UserError
from maira_jax.generation import grounding
from maira_jax.inputs.batches import GenerationRequest, assemble, fill_up
from maira_jax.inputs.image import ImageConfig, preprocess_batch, width_height
from maira_jax.inputs.prompt import phrase_grounding_prompt, reporting_prompt, study_images
from maira_jax.inputs.tokens import Encoded, Kind, Tokenizer
from maira_jax.phantom.pretraining.recipe import ReportPhase, Task, TaskBatch
from maira_jax.phantom.pretraining.report_phase import ReportBatch
from maira_jax.phantom.pretraining.study_source import StudySource
from maira_jax.studies.study import ImageSource, Study

_CHUNK = 64  # studies fetched at once
_PREFETCHED = 3  # batches made ahead of the one in use
_PHRASE_KIND = Kind.INDICATION  # of the sentence to locate


class BatchStream(Protocol):
    """An endless sequence of batches whose position is a JSON value."""

    def next_batch(self) -> Any:
        """The next batch."""

    def position(self) -> Any:
        """What `seek` needs in order to continue after the last batch."""

    def seek(self, position: Any) -> None:
        """Continues from a value of `position`."""


class ImageBatchStream:
    """Batches of labelled images, for the vision phase.

    Args:
      source: the images.
      image_cfg: image preprocessing of the model.
      batch_size: images in a batch.
    """

    def __init__(self, source: StudySource, image_cfg: ImageConfig, batch_size: int):
        self.source, self.image_cfg, self.batch_size = source, image_cfg, batch_size
        self.next = 0

    def next_batch(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The next images and their labels.

        Returns:
          Pixels, float32 [batch, size, size, 3]; labels, bool [batch, labels]; known, bool [batch, labels].
        """
        start, self.next = self.next, self.next + self.batch_size
        images, labels, known = self.source.images(start, self.next)
        return preprocess_batch(images, self.image_cfg), labels, known

    def position(self) -> int:
        return self.next

    def seek(self, position: int) -> None:
        self.next = position


class _EncodedStudy(NamedTuple):
    number: int  # index in the source's stream
    request: GenerationRequest


class ReportBatchStream:
    """Batches of one task: teacher-forced studies with the same number of images and about the same length.

    Args:
      source: the studies.
      tokenizer, image_cfg: tokenizer and image preprocessing of the model.
      phase: which studies and which parts of the prompt the batches have.
      batch: their task, rows and lengths.
      first: index of the first study.
    """

    def __init__(
        self,
        source: StudySource,
        tokenizer: Tokenizer,
        image_cfg: ImageConfig,
        phase: ReportPhase,
        batch: TaskBatch,
        first: int = 0,
    ):
        self.source, self.tokenizer, self.image_cfg = source, tokenizer, image_cfg
        self.phase, self.batch, self.lengths = phase, batch, sorted(batch.lengths)
        self.next = first
        self.waiting: dict[str, list[_EncodedStudy]] = {}

    def _encode(self, index: int, study: Study) -> _EncodedStudy | None:
        """What is learned from a study, with the task's prompt; None where it has no boxes that the task needs."""
        found = self._task(index, study)
        if found is None:
            return None
        encoded, images = found
        if self.phase.bare_prompt:
            kept = (_PHRASE_KIND,) if self.batch.task == Task.LOCATION else ()
            encoded = _without_instructions(encoded, *kept)
        return _EncodedStudy(index, GenerationRequest(encoded, images))

    def _task(self, index: int, study: Study) -> tuple[Encoded, tuple[ImageSource, ...]] | None:
        if self.batch.task == Task.REPORT:
            return self.tokenizer.encode(reporting_prompt(study), study.findings), study_images(study)
        if not study.grounded_findings or study.frontal is None:
            return None
        phrases = grounding.in_square(grounding.reference(study), *width_height(study.frontal))
        if self.batch.task == Task.GROUNDED_REPORT:
            prompt = reporting_prompt(study, grounded=True)
            return self.tokenizer.encode(prompt, grounding.write(phrases)), study_images(study)
        seen = [phrase for phrase in phrases if phrase.boxes]
        if not seen:
            return None
        phrase = random.Random(index).choice(seen)
        return self.tokenizer.encode(phrase_grounding_prompt(phrase.text), grounding.write([phrase])), (study.frontal,)

    def _bucket(self, row: _EncodedStudy) -> str | None:
        """Name of the batches that the study can be part of, for example "2x144"; None where it is skipped."""
        encoded, images = row.request
        too_long = len(encoded) - encoded.n_prompt > self.batch.max_findings
        if too_long or (self.phase.image_counts and len(images) not in self.phase.image_counts):
            return None
        length = next((length for length in self.lengths if length >= len(encoded)), None)
        return None if length is None else f"{len(images)}x{length}"

    def next_batch(self) -> ReportBatch:
        """The next batch that is full.

        Raises:
          UserError: no study fits into the lengths.
        """
        fetched = 0
        while True:
            for name, rows in self.waiting.items():
                if len(rows) >= self.batch.n_rows:
                    self.waiting[name] = rows[self.batch.n_rows :]
                    return self._padded(rows[: self.batch.n_rows], int(name.split("x")[1]))
            if fetched > 100 * self.batch.n_rows and not self.waiting:
                has_boxes = "" if self.batch.task == Task.REPORT else "has boxes and "
                raise UserError(
                    f"no study {has_boxes}fits into {self.lengths} tokens: raise the lengths of the recipe's phase "
                    f"{self.phase.name}, or give other studies"
                )
            for offset, study in enumerate(self.source.studies(self.next, self.next + _CHUNK)):
                row = self._encode(self.next + offset, study)
                if row is not None and (bucket := self._bucket(row)) is not None:
                    self.waiting.setdefault(bucket, []).append(row)
            self.next += _CHUNK
            fetched += _CHUNK

    def _padded(self, rows: list[_EncodedStudy], length: int) -> ReportBatch:
        """Pads studies with the same number of images to `length` tokens."""
        full = assemble([row.request for row in rows], self.tokenizer, self.image_cfg, length)
        target = (full.kinds == Kind.FINDINGS) | (full.kinds == Kind.EOS)
        return ReportBatch(*jax.device_put((full.tokens, full.mask, target, full.pixels)))

    def held_out(self) -> Iterator[ReportBatch]:
        """The held-out studies in batches of the same shapes; rows that fill up the last of a shape have no targets."""
        buckets: dict[str, list[_EncodedStudy]] = {}
        for index, study in enumerate(self.source.held_out):
            row = self._encode(index, study)
            if study.findings and row is not None and (name := self._bucket(row)) is not None:
                buckets.setdefault(name, []).append(row)
        for name, rows in sorted(buckets.items()):
            for start in range(0, len(rows), self.batch.n_rows):
                part = rows[start : start + self.batch.n_rows]
                batch = self._padded(fill_up(part, self.batch.n_rows), int(name.split("x")[1]))
                real = np.arange(self.batch.n_rows) < len(part)
                yield batch.replace(target=batch.target & real[:, None])  # type: ignore[attr-defined]

    def position(self) -> dict[str, Any]:
        return {
            "next": self.next,
            "waiting": {name: [row.number for row in rows] for name, rows in self.waiting.items()},
        }

    def seek(self, position: dict[str, Any]) -> None:
        self.next = position["next"]
        self.waiting = {}
        for bucket, indices in position["waiting"].items():
            rows = [self._encode(index, self.source.studies(index, index + 1)[0]) for index in indices]
            self.waiting[bucket] = [row for row in rows if row is not None]


class UpdateStream:
    """What every update takes: a batch of each task.

    Args:
      streams: the batches of each task.
    """

    def __init__(self, streams: Sequence[ReportBatchStream]):
        self.streams = streams

    def next_batch(self) -> list[ReportBatch]:
        return [stream.next_batch() for stream in self.streams]

    def position(self) -> list[dict[str, Any]]:
        return [stream.position() for stream in self.streams]

    def seek(self, position: list[dict[str, Any]]) -> None:
        for stream, own in zip(self.streams, position, strict=True):
            stream.seek(own)


def _without_instructions(encoded: Encoded, *kept: Kind) -> Encoded:
    """A study without the tokens of its prompt, but for the images and those that are `kept`."""
    kinds = encoded.kinds
    keep = np.isin(kinds, (Kind.BOS, Kind.IMAGE, Kind.IMAGE_LAST, Kind.FINDINGS, Kind.EOS, *kept))
    return Encoded(encoded.ids[keep], kinds[keep], int(keep[: encoded.n_prompt].sum()))


def prefetch(stream: BatchStream) -> Iterator[tuple[Any, Any]]:
    """Yields (batch, the stream's position after it), made by a thread a few batches ahead."""

    def take() -> tuple[Any, Any]:
        batch = stream.next_batch()
        return batch, stream.position()

    with ThreadPoolExecutor(1) as pool:
        waiting: list[Future] = [pool.submit(take) for _ in range(_PREFETCHED)]
        while True:
            yield waiting.pop(0).result()
            waiting.append(pool.submit(take))

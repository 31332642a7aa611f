"""Batches of one shape each, in an order that depends on the seed alone and can be taken up anywhere."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from maira_jax.errors import UserError
from maira_jax.inputs.batches import GenerationRequest, assemble, fill_up
from maira_jax.inputs.image import ImageConfig, preprocess_batch
from maira_jax.inputs.prompt import reporting_prompt, study_images
from maira_jax.inputs.tokens import Encoded, Kind, Tokenizer
from maira_jax.phantom.pretraining.source import Source
from maira_jax.phantom.pretraining.text_phase import Batch
from maira_jax.studies.study import Study

_CHUNK = 64  # studies fetched at once


class Stream(Protocol):
    """An endless iterator whose place in the stream is a JSON value."""

    def take(self) -> Any:
        """The next batch."""

    def place(self) -> Any:
        """Where the stream stands."""

    def go_to(self, place: Any) -> None:
        """Stands there again."""


class PictureStream:
    """Batches (pixels [batch, size, size, 3], labels [batch, labels], known [batch, labels])."""

    def __init__(self, source: Source, image_cfg: ImageConfig, batch_size: int):
        self.source, self.image_cfg, self.batch_size = source, image_cfg, batch_size
        self.next = 0

    def take(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        start, self.next = self.next, self.next + self.batch_size
        images, labels, known = self.source.pictures(start, self.next)
        return preprocess_batch(images, self.image_cfg), labels, known

    def place(self) -> int:
        return self.next

    def go_to(self, place: int) -> None:
        self.next = place


class _Row(NamedTuple):
    number: int  # in the source's stream
    study: Study
    encoded: Encoded


class TextStream:
    """Batches of teacher-forced studies with the same number of images and about the same length.

    Args:
      lengths: the padded lengths that batches may have, in tokens; longer studies are left out.
      max_findings: studies with more tokens to predict are left out.
      bare: images and findings alone, without instructions.
      images: the numbers of images that studies may have; others are left out. Empty: any.
    """

    def __init__(
        self,
        source: Source,
        tokenizer: Tokenizer,
        image_cfg: ImageConfig,
        batch_size: int,
        lengths: tuple[int, ...],
        max_findings: int,
        bare: bool = False,
        images: tuple[int, ...] = (),
    ):
        self.source, self.tokenizer, self.image_cfg = source, tokenizer, image_cfg
        self.batch_size, self.lengths, self.max_findings = batch_size, sorted(lengths), max_findings
        self.bare, self.images = bare, images
        self.next = 0
        self.waiting: dict[str, list[_Row]] = {}

    def _row(self, index: int, study: Study) -> _Row:
        encoded = self.tokenizer.encode(reporting_prompt(study), study.findings)
        return _Row(index, study, _without_instructions(encoded) if self.bare else encoded)

    def _bucket(self, row: _Row) -> str | None:
        too_long = len(row.encoded) - row.encoded.n_prompt > self.max_findings
        n_images = len(study_images(row.study))
        if too_long or (self.images and n_images not in self.images):
            return None
        length = next((length for length in self.lengths if length >= len(row.encoded)), None)
        return None if length is None else f"{n_images}x{length}"

    def take(self) -> Batch:
        """The next batch that is full.

        Raises:
          UserError: no study fits into the lengths.
        """
        fetched = 0
        while True:
            for name, rows in self.waiting.items():
                if len(rows) >= self.batch_size:
                    self.waiting[name] = rows[self.batch_size :]
                    return self.batch(rows[: self.batch_size], int(name.split("x")[1]))
            if fetched > 100 * self.batch_size and not self.waiting:
                raise UserError(f"no study fits into {self.lengths} tokens: raise a phase's lengths in pretrain")
            for offset, study in enumerate(self.source.studies(self.next, self.next + _CHUNK)):
                row = self._row(self.next + offset, study)
                if (bucket := self._bucket(row)) is not None:
                    self.waiting.setdefault(bucket, []).append(row)
            self.next += _CHUNK
            fetched += _CHUNK

    def batch(self, rows: list[_Row], length: int) -> Batch:
        """Pads rows with the same number of images to `length`."""
        requests = [GenerationRequest(row.encoded, study_images(row.study)) for row in rows]
        full = assemble(requests, self.tokenizer, self.image_cfg, length)
        target = (full.kinds == Kind.FINDINGS) | (full.kinds == Kind.EOS)
        return Batch(*jax.device_put((full.tokens, full.mask, target, full.pixels)))

    def held_out(self) -> Iterator[Batch]:
        """The held-out studies in batches of the same shapes; the last of a shape is filled up without targets."""
        buckets: dict[str, list[_Row]] = {}
        for index, study in enumerate(self.source.held_out):
            row = self._row(index, study)
            name = self._bucket(row)
            if study.findings and name is not None:
                buckets.setdefault(name, []).append(row)
        for name, rows in sorted(buckets.items()):
            for start in range(0, len(rows), self.batch_size):
                part = rows[start : start + self.batch_size]
                batch = self.batch(fill_up(part, self.batch_size), int(name.split("x")[1]))
                real = np.arange(self.batch_size) < len(part)
                yield batch.replace(target=batch.target & real[:, None])  # type: ignore[attr-defined]

    def place(self) -> dict[str, Any]:
        return {
            "next": self.next,
            "waiting": {name: [row.number for row in rows] for name, rows in self.waiting.items()},
        }

    def go_to(self, place: dict[str, Any]) -> None:
        self.next = place["next"]
        self.waiting = {
            bucket: [self._row(index, self.source.studies(index, index + 1)[0]) for index in indices]
            for bucket, indices in place["waiting"].items()
        }


def _without_instructions(encoded: Encoded) -> Encoded:
    kinds = encoded.kinds
    keep = np.isin(kinds, (Kind.BOS, Kind.IMAGE, Kind.IMAGE_LAST, Kind.FINDINGS, Kind.EOS))
    return Encoded(encoded.ids[keep], kinds[keep], int(keep[: encoded.n_prompt].sum()))


def prefetch(stream: Stream, ahead: int = 3) -> Iterator[tuple[Any, Any]]:
    """Yields (batch, the stream's place after it), made by a thread a few batches ahead."""

    def take() -> tuple[Any, Any]:
        batch = stream.take()
        return batch, stream.place()

    with ThreadPoolExecutor(1) as pool:
        waiting: list[Future] = [pool.submit(take) for _ in range(ahead)]
        while True:
            yield waiting.pop(0).result()
            waiting.append(pool.submit(take))

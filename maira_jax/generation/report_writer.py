"""From requests to texts: plans batches, generates on the device, and decodes while the next batch is prepared."""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from maira_jax.generation.decode import Sampling, generate, row_keys
from maira_jax.inputs.batches import (
    BatchPlan,
    GenerationRequest,
    InputBatch,
    assemble_ahead,
    fill_up,
    plan_batches,
    reporting_request,
)
from maira_jax.inputs.image import ImageConfig
from maira_jax.inputs.tokens import Tokenizer
from maira_jax.model import sharding
from maira_jax.model.config import Maira2Config
from maira_jax.model.layers import Params
from maira_jax.run.performance import profile
from maira_jax.run.performance.profile import StepTrace
from maira_jax.run.progress import progress
from maira_jax.studies.study import Study


class GeneratedText(NamedTuple):
    """What the model wrote for one request.

    Attributes:
      text: the text without special tokens.
      tokens: number of generated tokens, the end token counted.
      finished: whether the model wrote the end token.
    """

    text: str
    tokens: int
    finished: bool


@dataclasses.dataclass(frozen=True)
class ReportWriter:
    """Writes texts for requests. Batches of the same shape are one compiled program, whatever the temperature.

    Attributes:
      params: the model's parameters, `maira2.unstacked`.
      cfg: the model's configuration.
      tokenizer: the checkpoint's tokenizer.
      image_cfg: how the checkpoint's vision tower takes its images.
      batch_size: number of texts of every batch, whose rows are filled up to what the parameters' mesh divides.
      max_new_tokens: number of tokens of the longest text.
      temperature, top_p: how tokens are chosen (see `Sampling`).
      seed: seed of the draws.
    """

    params: Params
    cfg: Maira2Config
    tokenizer: Tokenizer
    image_cfg: ImageConfig
    batch_size: int
    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def plan(self, requests: Sequence[GenerationRequest]) -> list[BatchPlan]:
        """The batches that answer `requests`."""
        return plan_batches(requests, self.batch_size)

    def write(
        self,
        requests: Sequence[GenerationRequest],
        names: Sequence[str],
        plans: Iterable[BatchPlan],
        trace: StepTrace = profile.OFF,
    ) -> Iterator[list[tuple[int, GeneratedText]]]:
        """Yields each batch's rows with their texts; the device writes one batch while the next is assembled.

          Args:
            requests: what the model is given.
            names: names of the requests, such as their studies' ids; each decides what is drawn for its request.
            plans: the batches to run, out of those of `plan`.
        trace: traces some of them.

          Raises:
            UserError: an image cannot be read.
        """
        before: tuple[BatchPlan, jax.Array, jax.Array] | None = None
        size = sharding.rows_on(sharding.mesh_of(self.params), self.batch_size)
        padded = (
            (batch, [requests[row] for row in fill_up(batch.rows, size)], batch.length, batch.n_images)
            for batch in plans
        )
        for batch, given in trace.over(assemble_ahead(padded, self.tokenizer, self.image_cfg)):
            now = (batch, *self._start(given, [names[row] for row in fill_up(batch.rows, size)]))
            if before is not None:
                yield self._texts(*before)
            before = now
        if before is not None:
            yield self._texts(*before)

    def _start(self, batch: InputBatch, names: Sequence[str]) -> tuple[jax.Array, jax.Array]:
        on = sharding.mesh_of(self.params)
        inputs = sharding.place_rows(on, (batch.tokens, batch.mask, batch.pixels))
        sampling = Sampling(row_keys(names, self.seed), jnp.float32(self.temperature), jnp.float32(self.top_p))
        with jax.set_mesh(on):
            return generate(
                self.params, self.cfg, *inputs,
                max_new_tokens=self.max_new_tokens, eos_id=self.tokenizer.eos_id, sampling=sampling,
            )  # fmt: skip

    def _texts(self, batch: BatchPlan, written: jax.Array, lengths: jax.Array) -> list[tuple[int, GeneratedText]]:
        ids, sizes = np.asarray(written), np.asarray(lengths)
        eos = self.tokenizer.eos_id
        return [
            (row, GeneratedText(self.tokenizer.decode(ids[i, :size]), int(size), int(ids[i, size - 1]) == eos))
            for i, (row, size) in enumerate(zip(batch.rows, sizes, strict=False))
        ]


def write_reports(writer: ReportWriter, studies: Sequence[Study]) -> list[str]:
    """The report of each study, in the order of `studies`.

    Raises:
      UserError: a study cannot be prompted for, or an image cannot be read.
    """
    requests = [reporting_request(study, writer.tokenizer) for study in studies]
    return write_texts(writer, requests, [study.study_id for study in studies])


def write_texts(writer: ReportWriter, requests: Sequence[GenerationRequest], names: Sequence[str]) -> list[str]:
    """The text for each request, in their order.

    Args:
      writer: the model.
      requests: what the model is given.
      names: as for `ReportWriter.write`.

    Raises:
      UserError: an image cannot be read.
    """
    texts = [""] * len(requests)
    with progress(total=len(requests), unit="text", desc="texts") as bar:
        for batch in writer.write(requests, names, writer.plan(requests)):
            for row, written in batch:
                texts[row] = written.text
            bar.update(len(batch))
    return texts

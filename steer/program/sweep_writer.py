"""Writes the reports of a sweep, some studies at a time. Every call has the same shapes, so it is compiled once."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from maira_jax.generation.decode import Sampling, row_keys
from maira_jax.inputs.batches import InputBatch, fill_up
from maira_jax.inputs.tokens import FRONTAL, token_filter_mask
from maira_jax.model import maira2, sharding
from maira_jax.model.config import Maira2Config
from maira_jax.model.layers import Params
from maira_jax.model.sites import Site
from steer.config import SteerSection
from steer.methods.direction import Direction
from steer.program import decode
from steer.program.decode import PromptPrefixes, SteeredRows, SweepShape
from steer.program.edit import SteeringEdits
from steer.program.prompts import Prompts

_TIMED_STEPS = 6  # decoding steps that an estimate times
_LENGTHS = 4  # lengths to which reports are cut when their likelihood is measured; each is compiled once


class GenerationRow(NamedTuple):
    """One report for each study: along which direction, how strongly, and where the residual stream is edited."""

    direction: Direction
    strength: float
    site: Site

    @property
    def sentence(self) -> str | None:
        """The sentence that the study's indication is extended by; None where the prompt is the study's own."""
        return self.direction.intervention.sentences.get(self.strength)


class SteeredReport(NamedTuple):
    """What was written.

    Attributes:
      text: the report.
      tokens: its number of tokens, its end token counted.
      finished: whether it ended by itself.
      finite: whether every token was chosen from finite logits.
      mean_nll: its mean negative log-likelihood under the unsteered model, nats per token.
    """

    text: str
    tokens: int
    finished: bool
    finite: bool
    mean_nll: float


class MeasuredCost(NamedTuple):
    """What some steps of a sweep took.

    Attributes:
      prefill: seconds to read the prompts.
      row_prefill: seconds to read the prompt again for one row in every slot.
      token: seconds to write one token in every slot.
      bytes: the memory that this needs.
    """

    prefill: float
    row_prefill: float
    token: float
    bytes: int


def plan_rows(
    directions: Sequence[Direction], strengths: Sequence[float], d_model: int, site: Site
) -> list[GenerationRow]:
    """The rows of each study: the unsteered report, each direction at its strengths, and last the prompted ones."""
    rows = [GenerationRow(Direction.none(d_model), 0.0, site)]
    rows += [GenerationRow(direction, s, site) for direction in directions for s in direction.strengths(strengths)]
    return sorted(rows, key=lambda row: row.sentence is not None)


def _of_rows(rows: Sequence[GenerationRow], prompts: Prompts) -> tuple[SteeringEdits, tuple[str, ...], int]:
    """Edits, sentences and the length of prompts with one, of a writer of these rows."""
    own = [row for row in rows if row.sentence is None]
    edits = SteeringEdits.of(
        [row.direction.intervention for row in own], [row.strength for row in own], [row.site for row in own]
    )
    sentences = tuple(row.sentence for row in rows if row.sentence is not None)
    return edits, sentences, prompts.length_with(sentences) if sentences else 0


@dataclasses.dataclass(frozen=True)
class SweepWriter:
    """Writes all rows of some studies.

    Attributes:
      params: the model, with the language model's layers unstacked.
      cfg: its configuration.
      prompts: the prompts of the studies.
      section: the section of the configuration.
      seed: the seed of the draws.
      rows: the rows of each study, the prompted ones last; their sites are in one tower.
      edits: the edits of the others.
      sentences: the sentences of the prompted rows.
      prompted_length: the length that prompts with a sentence are padded to.
      patches: which patches of each study's frontal image are edited, bool [patches] each; empty: the tokens of
        `section.positions` are.
    """

    params: Params
    cfg: Maira2Config
    prompts: Prompts
    section: SteerSection
    seed: int
    rows: Sequence[GenerationRow]
    edits: SteeringEdits
    sentences: tuple[str, ...]
    prompted_length: int
    patches: Sequence[np.ndarray] = ()

    @classmethod
    def of(
        cls,
        params: Params,
        cfg: Maira2Config,
        prompts: Prompts,
        section: SteerSection,
        seed: int,
        rows: Sequence[GenerationRow],
    ) -> Self:
        """The writer for a model as it is loaded."""
        return cls(maira2.unstacked(params), cfg, prompts, section, seed, rows, *_of_rows(rows, prompts))

    def of_rows(self, rows: Sequence[GenerationRow]) -> Self:
        """A writer of some of the rows."""
        edits, sentences, length = _of_rows(rows, self.prompts)
        return dataclasses.replace(self, rows=rows, edits=edits, sentences=sentences, prompted_length=length)

    @property
    def mesh(self) -> Mesh:
        """The mesh that the model lies on."""
        return sharding.mesh_of(self.params)

    @property
    def n_studies(self) -> int:
        """The studies of a batch: `batch_studies`, filled up to what the mesh divides."""
        return sharding.rows_on(self.mesh, self.section.batch_studies)

    @property
    def shape(self) -> SweepShape:
        """The shape of the rows with the study's own prompt, which share the layers before the first site."""
        return SweepShape.of(
            min((row.site for row in self.rows), key=lambda site: site.code),
            self.section.edits_prompt,
            slots=min(self.section.batch_rows, len(self.edits.site)),
            max_new_tokens=self.section.max_new_tokens,
            eos_id=self.prompts.tokenizer.eos_id,
        )

    @property
    def _unedited_shape(self) -> SweepShape:
        """The shape where no prompt is edited: rows share all layers of a prompt."""
        return dataclasses.replace(self.shape, tower="language", first_layer=None)

    def sampling(self, studies: Sequence[int]) -> Sampling | None:
        """How tokens are chosen: all rows of a study share its draws, independent of the other studies in its batch."""
        if not self.section.temperature:
            return None
        names = [self.prompts.studies[number].study_id for number in fill_up(studies, self.n_studies)]
        each = (jnp.float32(self.section.temperature), jnp.float32(self.section.top_p))
        return Sampling(row_keys(names, self.seed), *each)

    def prefill(self, studies: Sequence[int], shape: SweepShape) -> PromptPrefixes:
        """Reads the prompts of studies, filled up to `n_studies`."""
        numbers = fill_up(studies, self.n_studies)
        batch = self.prompts.batch(numbers)
        edited = self.section.edited(batch.kinds)
        if self.patches:
            edited = token_filter_mask(batch.kinds, FRONTAL)
            edited[edited] = np.concatenate([self.patches[number] for number in numbers])
        return self._prefill(shape, batch, edited)

    def _prefill(self, shape: SweepShape, batch: InputBatch, edited: np.ndarray) -> PromptPrefixes:
        inputs = sharding.place_rows(self.mesh, (batch.tokens, batch.mask, batch.pixels, edited))
        return decode.prefill(self.params, self.cfg, shape, *inputs)

    def steered_rows(self, studies: Sequence[int]) -> SteeredRows:
        """The rows with the study's own prompt; none of the studies that fill up the batch."""
        counts = np.where(np.arange(self.n_studies) < len(studies), len(self.edits.site), 0)
        return SteeredRows.of(self.edits, self.section.edits_generated, counts, self.sampling(studies))

    def write(
        self, studies: Sequence[int], on_rows: Callable[[int], object] = lambda rows: None
    ) -> list[list[SteeredReport]]:
        """The reports of all rows, for each study; called by several threads at once.

        Args:
          studies: numbers of studies in `prompts`, at most `batch_studies`.
          on_rows: called periodically with the number of reports that have ended since the last call.
        """
        with jax.set_mesh(self.mesh):
            shape = self.shape
            prompts = self.prefill(studies, shape)
            steered = decode.write_rows(self.params, self.cfg, shape, prompts, self.steered_rows(studies), on_rows)
            prompted = self._write_prompted(studies, on_rows) if self.sentences else tuple(x[:, :0] for x in steered)
            tokens, lengths, finite = (np.concatenate(pair, axis=1) for pair in zip(steered, prompted, strict=True))
            if shape.first_layer is not None:
                prompts = self.prefill(studies, self._unedited_shape)
            nats = self._mean_nll(prompts, tokens, lengths)  # [studies, rows]
        return [
            [self._report(*row) for row in zip(tokens[s], lengths[s], finite[s], nats[s], strict=True)]
            for s in range(len(studies))
        ]

    def _report(self, tokens: np.ndarray, length: int, finite: bool, mean_nll: float) -> SteeredReport:
        ids, tokenizer = tokens[:length], self.prompts.tokenizer
        finished = int(ids[-1]) == tokenizer.eos_id
        return SteeredReport(tokenizer.decode(ids), int(length), finished, bool(finite), round(float(mean_nll), 5))

    def _mean_nll(self, prompts: PromptPrefixes, tokens: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """See `decode.mean_nll`. Reports of similar length are read together, cut to one of a few lengths."""
        studies, n, max_length = tokens.shape
        step, together = -(-max_length // _LENGTHS), self.shape.slots
        order = np.argsort(lengths, axis=1, kind="stable")  # [studies, n]
        nats = np.zeros((studies, n), np.float32)
        for start in range(0, n, together):
            ranks = np.minimum(np.arange(start, start + together), n - 1)
            rows = order[:, ranks]  # [studies, together]
            each = np.take_along_axis(lengths, rows, axis=1)  # [studies, together]
            length = min(-(-int(each.max()) // step) * step, max_length)
            texts = np.take_along_axis(tokens, rows[..., None], axis=1)[..., :length]  # [studies, together, length]
            found = decode.mean_nll(self.params, self.cfg, prompts, texts, each)
            np.put_along_axis(nats, rows, np.asarray(found), axis=1)
        return nats

    def _write_prompted(
        self, studies: Sequence[int], on_rows: Callable[[int], object]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The prompted rows, each with a prompt of its own, of `n_studies` studies; see `decode.write_rows`."""
        shape = dataclasses.replace(self._unedited_shape, slots=1)
        filled = fill_up(studies, self.n_studies)
        wanted = [(study, sentence) for study in filled for sentence in self.sentences]
        batch_size = self.n_studies * self.shape.slots
        unedited = SteeringEdits.of(
            [Direction.none(self.cfg.text.hidden_size).intervention], [0.0], [self.rows[0].site]
        )
        parts = []
        for start in range(0, len(wanted), batch_size):
            numbers, sentences = zip(*fill_up(wanted[start : start + batch_size], batch_size), strict=True)
            batch = self.prompts.batch(numbers, sentences, self.prompted_length)
            nowhere = np.zeros_like(batch.mask)
            prompts = self._prefill(shape, batch, nowhere)
            counts = start + np.arange(batch_size) < len(studies) * len(self.sentences)
            rows = SteeredRows.of(unedited, False, counts, self.sampling(numbers))
            parts.append(decode.write_rows(self.params, self.cfg, shape, prompts, rows, on_rows))
        each = (self.n_studies, len(self.sentences))
        whole = [np.concatenate(arrays)[: len(wanted), 0] for arrays in zip(*parts, strict=True)]
        tokens, lengths, finite = (array.reshape(*each, *array.shape[1:]) for array in whole)
        return tokens, lengths, finite

    def measure(self, studies: Sequence[int]) -> MeasuredCost:
        """Reads the prompts of studies and writes a few tokens in every slot."""
        with jax.set_mesh(self.mesh):
            shape, steps = self.shape, jnp.int32(_TIMED_STEPS)
            self.prefill(studies, shape)  # compiles
            start = time.perf_counter()
            prompts = jax.block_until_ready(self.prefill(studies, shape))
            prefill = time.perf_counter() - start
            rows = self.steered_rows(studies)
            state = decode.begin(self.cfg, shape, prompts, rows)
            program = decode.advance.lower(self.params, self.cfg, shape, prompts, rows, state, steps).compile()
            took = []
            for _ in range(2):
                start = time.perf_counter()
                state = jax.block_until_ready(program(self.params, prompts, rows, state, steps))
                took.append((time.perf_counter() - start) / _TIMED_STEPS)
        memory = program.memory_analysis()
        assert memory is not None
        row_prefill = max(took[0] - took[1], 0) * _TIMED_STEPS  # only the first steps read prompts again
        size = memory.argument_size_in_bytes + memory.temp_size_in_bytes
        return MeasuredCost(prefill, row_prefill, took[1], size)

"""Writes the reports of a sweep, some studies at a time. Every call has the same shapes: one compilation."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np

from maira_jax.generation.decode import Sampling, row_keys
from maira_jax.inputs.batches import fill_up
from maira_jax.model.config import Maira2Config
from maira_jax.model.layers import Params
from maira_jax.model.sites import Site
from steer.config import Settings
from steer.methods.directions import PROMPT, Direction, edits, none
from steer.program import decode
from steer.program.decode import Prefixes, Shape
from steer.program.edit import Edits
from steer.program.prompts import Prompts

_MEASURED = 6  # tokens
_LENGTHS = 4  # to which texts are cut when their surprise is measured, each a program
SAID = {1.0: "There is {}.", -1.0: "There is no {}."}  # of a concept, for the arm "prompt"


class Row(NamedTuple):
    """One report for each study: along which direction, how strongly."""

    direction: Direction
    strength: float


class Measured(NamedTuple):
    """Seconds to read the prompts, to read them again for one row in every place, and to write one token in every
    place; and the bytes that this needs."""

    read: float
    reread: float
    token: float
    bytes: int


class Report(NamedTuple):
    """What was written.

    Attributes:
      text: the report.
      tokens: how many it has, its end token counted.
      finished: whether it ended by itself.
      finite: whether every token was chosen from finite logits.
      surprise: how unlikely the unsteered model finds it, nats a token.
    """

    text: str
    tokens: int
    finished: bool
    finite: bool
    surprise: float


def plan(steered: Sequence[Direction], strengths: Sequence[float], d_model: int) -> list[Row]:
    """The rows of a study: the unsteered report, each direction at its strengths, and last those with other prompts."""
    rows = [Row(none(d_model), 0.0)]
    rows += [Row(direction, strength) for direction in steered for strength in direction.strengths(strengths)]
    return sorted(rows, key=lambda row: row.direction.arm == PROMPT)


@dataclasses.dataclass(frozen=True)
class Writer:
    """Writes all rows of some studies.

    Attributes:
      params: the model, with the language model's layers apart.
      cfg: its configuration.
      prompts: of the studies.
      site: where to edit.
      settings: of the sweep.
      seed: of the draws.
      rows: of each study, those with other prompts last.
      table: the edits of the others.
      said: the sentences of those with other prompts.
      said_length: tokens of the longest prompt with a sentence.
    """

    params: Params
    cfg: Maira2Config
    prompts: Prompts
    site: Site
    settings: Settings
    seed: int
    rows: Sequence[Row]
    table: Edits
    said: tuple[str, ...]
    said_length: int

    @classmethod
    def of(
        cls,
        params: Params,
        cfg: Maira2Config,
        prompts: Prompts,
        site: Site,
        settings: Settings,
        seed: int,
        rows: Sequence[Row],
    ) -> Self:
        """For a model as it is loaded."""
        own = [row for row in rows if row.direction.arm != PROMPT]
        table = edits([row.direction for row in own], [row.strength for row in own], site)
        said = tuple(SAID[row.strength].format(row.direction.target.concept) for row in rows[len(own) :])  # type: ignore[union-attr]
        length = prompts.length_with(said) if said else 0
        return cls(decode.apart(params), cfg, prompts, site, settings, seed, rows, table, said, length)

    @property
    def shape(self) -> Shape:
        """Of the rows with the study's own prompt."""
        slots = min(self.settings.batch_rows, len(self.table.site))
        longest, eos = self.settings.max_new_tokens, self.prompts.tokenizer.eos_id
        return Shape.of(self.site, self.settings.edits_prompt, slots=slots, max_new_tokens=longest, eos_id=eos)

    @property
    def _plain(self) -> Shape:
        """Of rows that nothing is edited in: whatever is shared can be."""
        return dataclasses.replace(self.shape, tower="language", first_layer=None)

    def sampling(self, studies: Sequence[int]) -> Sampling | None:
        """How tokens are chosen: a study draws alike in all its rows, whatever its company."""
        if not self.settings.temperature:
            return None
        names = [self.prompts.studies[number].study_id for number in fill_up(studies, self.settings.batch_studies)]
        each = (jnp.float32(self.settings.temperature), jnp.float32(self.settings.top_p))
        return Sampling(row_keys(names, self.seed), *each)

    def read(self, studies: Sequence[int], shape: Shape) -> Prefixes:
        """Reads the prompts of studies, filled up to as many as are written together."""
        batch = self.prompts.batch(fill_up(studies, self.settings.batch_studies))
        edited = self.settings.edited(batch.kinds)
        return decode.read(self.params, self.cfg, shape, batch.tokens, batch.mask, batch.pixels, edited)

    def write(self, studies: Sequence[int], on_rows: Callable[[int], object] = lambda rows: None) -> list[list[Report]]:
        """For each study, at most `batch_studies` of them, the reports of all rows.

        Args:
          studies: their numbers in `prompts`.
          on_rows: is told now and then how many more reports have come to an end.
        """
        shape, places = self.shape, self.settings.batch_studies
        prompts = self.read(studies, shape)
        count = np.where(np.arange(places) < len(studies), len(self.table.site), 0)
        own = decode.write(
            self.params,
            self.cfg,
            shape,
            prompts,
            self.table,
            self.settings.generated,
            count,
            on_rows,
            self.sampling(studies),
        )
        said = self._write_said(studies, on_rows) if self.said else tuple(array[:, :0] for array in own)
        tokens, lengths, finite = (np.concatenate(pair, axis=1) for pair in zip(own, said, strict=True))
        if shape.first_layer is not None:
            prompts = self.read(studies, self._plain)
        nats = self._surprise(prompts, tokens, lengths)
        eos, text_of = self.prompts.tokenizer.eos_id, self.prompts.tokenizer.decode
        return [
            [
                Report(
                    text_of(ids[:n]), int(n), int(ids[n - 1]) == eos, bool(finite[s, r]), round(float(nats[s, r]), 5)
                )
                for r, (ids, n) in enumerate(zip(tokens[s], lengths[s], strict=True))
            ]
            for s in range(len(studies))
        ]

    def _surprise(self, prompts: Prefixes, tokens: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """See `generate.surprise`. Reports of about the same length are read together, cut to one of a few lengths."""
        studies, n, longest = tokens.shape
        step, together = -(-longest // _LENGTHS), self.shape.slots
        order = np.argsort(lengths, axis=1, kind="stable")  # [studies, n]
        nats = np.zeros((studies, n), np.float32)
        for start in range(0, n, together):
            ranks = np.minimum(np.arange(start, start + together), n - 1)
            rows = order[:, ranks]  # [studies, together]
            each = np.take_along_axis(lengths, rows, axis=1)
            cut = min(-(-int(each.max()) // step) * step, longest)
            texts = np.take_along_axis(tokens, rows[..., None], axis=1)[..., :cut]
            found = decode.surprise(self.params, self.cfg, prompts, texts, each)
            np.put_along_axis(nats, rows, np.asarray(found), axis=1)
        return nats

    def measure(self, studies: Sequence[int]) -> "Measured":
        """Reads the prompts of studies and writes a few tokens in every place."""
        shape, steps = self.shape, jnp.int32(_MEASURED)
        self.read(studies, shape)  # compiles
        start = time.perf_counter()
        prompts = jax.block_until_ready(self.read(studies, shape))
        read = time.perf_counter() - start
        count = jnp.full(self.settings.batch_studies, len(self.table.site), jnp.int32)
        state = decode.begin(self.cfg, shape, prompts, self.table, count)
        generated = jnp.asarray(self.settings.generated)
        sampling = self.sampling(studies)
        program = decode.advance.lower(
            self.params, self.cfg, shape, prompts, self.table, generated, count, state, steps, sampling
        ).compile()
        took = []
        for _ in range(2):
            start = time.perf_counter()
            state = program(self.params, prompts, self.table, generated, count, state, steps, sampling)
            jax.block_until_ready(state)
            took.append((time.perf_counter() - start) / _MEASURED)
        found = program.memory_analysis()
        assert found is not None
        return Measured(
            read,
            max(took[0] - took[1], 0) * _MEASURED,
            took[1],
            found.argument_size_in_bytes + found.temp_size_in_bytes,
        )

    def _write_said(
        self, studies: Sequence[int], on_rows: Callable[[int], object]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The rows with other prompts, each a prompt of its own; for as many studies as are written together."""
        shape = dataclasses.replace(self._plain, slots=1)
        wanted = [
            (study, sentence) for study in fill_up(studies, self.settings.batch_studies) for sentence in self.said
        ]
        places = self.settings.batch_studies * self.shape.slots
        zero = edits([self.rows[0].direction], [0.0], self.site)
        parts = []
        for start in range(0, len(wanted), places):
            part = fill_up(wanted[start : start + places], places)
            batch = self.prompts.batch([study for study, _ in part], [said for _, said in part], self.said_length)
            prompts = decode.read(
                self.params, self.cfg, shape, batch.tokens, batch.mask, batch.pixels, np.zeros_like(batch.mask)
            )
            count = (start + np.arange(places) < len(studies) * len(self.said)).astype(int)
            drawn = self.sampling([study for study, _ in part])
            parts.append(decode.write(self.params, self.cfg, shape, prompts, zero, False, count, on_rows, drawn))
        each = (self.settings.batch_studies, len(self.said))
        whole = [np.concatenate(arrays)[: len(wanted), 0] for arrays in zip(*parts, strict=True)]
        tokens, lengths, finite = (array.reshape(*each, *array.shape[1:]) for array in whole)
        return tokens, lengths, finite

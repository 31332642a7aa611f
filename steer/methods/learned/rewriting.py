"""What an edit is learned from: how likely the edited model finds training studies' reports with a concept rewritten.

The report of a study that lacks the concept is rewritten to state it, or the other way round (`reports.statements`). An
edit under which the model writes that report, on the study's own prompt and image, changes the concept and nothing
else. Prompts and reports are read up to the first block that the edit changes once; gradients go from there on.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from maira_jax.errors import UserError
from maira_jax.inputs.batches import InputBatch, assemble, buckets, fill_up, padded_length, reporting_request
from maira_jax.inputs.tokens import Kind
from maira_jax.model import language, maira2, sharding
from maira_jax.model.config import Maira2Config
from maira_jax.model.layers import Params
from maira_jax.model.sites import Site
from maira_jax.reports.statements import concept_sentences, joint_denials, rewritten
from maira_jax.studies.study import Study
from steer.methods.learned.kept import KeptEdits
from steer.selection.rule import EditedModel

_READ_REPORTS = 1000  # of the training studies, whose sentences on a concept are counted
_ROOM = 32  # tokens by which a rewritten report may be longer than the longest one
_MIN_STUDIES = 4  # that an edit is learned from


class LearnedEdit(struct.PyTreeNode):
    """A tree of arrays that says how the residual stream is edited.

    learned: float32 [n], those numbers of it that are learned.
    """

    learned: jax.Array

    def apply(self, x: jax.Array, edited: jax.Array) -> tuple[jax.Array, jax.Array]:
        """x [B, T, d_model] as it becomes where `edited`, bool [B, T], and a penalty []."""
        raise NotImplementedError


@struct.dataclass
class ScoredReports:
    """Prompts with a report each.

    residual: [B, T, d_model], before the first block that an edit changes. length: int32 [B], tokens of each row.
    edited: bool [B, T]. tokens: int32 [B, R], of the report, its end token too. places: int32 [B, R], the places that
    they follow. counted: bool [B, R].
    """

    residual: jax.Array
    length: jax.Array
    edited: jax.Array
    tokens: jax.Array
    places: jax.Array
    counted: jax.Array


@struct.dataclass
class RewrittenBatch:
    """The same studies with the rewritten report and with their own."""

    rewritten: ScoredReports
    own: ScoredReports


@dataclasses.dataclass(frozen=True)
class Rewriting:
    """Training studies' reports, rewritten, and the model that edits are learned through.

    Attributes:
      model: the model, and where it is edited.
      training: gives the training studies.
      n_studies: the largest number of studies that an edit is learned from.
      batch_studies: how many of them the model reads together.
      kept: what has been learned so.
    """

    model: EditedModel
    training: Callable[[], Sequence[Study]]
    n_studies: int
    batch_studies: int
    kept: KeptEdits

    @functools.cached_property
    def _params(self) -> Params:
        return maira2.unstacked(self.model.params)

    @functools.cached_property
    def _known(self) -> dict[tuple[str, bool], list[RewrittenBatch]]:
        return {}

    @functools.cached_property
    def _sizes(self) -> tuple[tuple[int, ...], int, int]:
        """Tokens that a row may be padded to, images, and tokens of the report: the same for all concepts."""
        requests = [self._request(study, study.findings) for study in self.training() if study.findings]
        report = max(int(np.isin(request.encoded.kinds, (Kind.FINDINGS, Kind.EOS)).sum()) for request in requests)
        usual, n_images = buckets(requests)
        longest = padded_length(max(len(request.encoded) for request in requests) + _ROOM)
        return (*usual[:-1], longest), max(n_images), report + _ROOM

    def batches(self, concept: str, *, present: bool) -> list[RewrittenBatch]:
        """Training studies whose reports can be rewritten to have a concept, or not to, in batches of few shapes.

        Returns:
          The batches, shortest first; an empty list where fewer than four reports can be rewritten so.

        Raises:
          UserError: the site is not in the language model.
        """
        if self.model.site.tower != "language":
            raise UserError(
                f"steer.methods that are learned need a site of the language model, not {self.model.site.name}: "
                "choose other methods"
            )
        if (concept, present) not in self._known:
            self._known[concept, present] = self._batches(concept, present)
        return self._known[concept, present]

    def _batches(self, concept: str, present: bool) -> list[RewrittenBatch]:
        studies = [study for study in self.training() if study.findings]
        reports = [study.findings or "" for study in studies[:_READ_REPORTS]]
        denials = joint_denials(reports)
        statements = concept_sentences(reports, concept).stating if present else (None,)
        pairs: list[tuple[Study, str]] = []
        for study in studies:
            statement = statements[len(pairs) % len(statements)]
            text = rewritten(study.findings or "", concept, denials, statement)
            if text and self._tokens(study, text) <= self._sizes[0][-1]:
                pairs.append((study, text))
            if len(pairs) == self.n_studies:
                break
        if len(pairs) < _MIN_STUDIES:
            return []
        pairs.sort(key=lambda pair: self._tokens(*pair))  # studies of about the same length are read together
        size = sharding.rows_on(sharding.mesh_of(self.model.params), min(self.batch_studies, len(pairs)))
        groups = [fill_up(pairs[start : start + size], size) for start in range(0, len(pairs), size)]
        return [
            RewrittenBatch(self._read(group), self._read([(study, study.findings or "") for study, _ in group]))
            for group in groups
        ]

    def _request(self, study: Study, findings: str | None) -> Any:
        return reporting_request(study, self.model.tokenizer, findings=findings)

    def _tokens(self, study: Study, findings: str) -> int:
        return len(self._request(study, findings).encoded)

    def _read(self, rows: Sequence[tuple[Study, str]]) -> ScoredReports:
        """Reads prompts with reports up to the first block that an edit changes."""
        lengths, n_images, n_report = self._sizes
        requests = [self._request(*row) for row in rows]
        longest = max(len(request.encoded) for request in requests)
        length = next(length for length in lengths if length >= longest)
        batch = assemble(requests, self.model.tokenizer, self.model.image_cfg, length, n_images)
        follows = np.isin(batch.kinds, (Kind.FINDINGS, Kind.EOS))  # [B, T]
        tokens, places = np.zeros((2, len(rows), n_report), np.int32)
        counted = np.zeros((len(rows), n_report), bool)
        for row, at in enumerate(map(np.flatnonzero, follows)):
            at = at[:n_report]
            tokens[row, : len(at)], places[row, : len(at)] = batch.tokens[row, at], at - 1
            counted[row, : len(at)] = True
        on = sharding.mesh_of(self.model.params)
        edited = _edited(self.model, batch)
        with jax.set_mesh(on):
            placed = sharding.place_rows(on, (batch.tokens, batch.mask, batch.pixels))
            residual = _residual(self.model.params, self.model.cfg, self.model.site.code, *placed)
            lengths = batch.mask.sum(axis=1).astype(np.int32)
            return ScoredReports(residual, *sharding.place_rows(on, (lengths, edited, tokens, places, counted)))

    def gradient(self, edit: LearnedEdit, batches: Sequence[RewrittenBatch], weight: float = 0.0) -> jax.Array:
        """The gradient, [n], of the rewritten reports' nats per token plus the weighted penalty; mean over batches."""
        given = (self._params, self.model.cfg, self.model.site.code)
        with jax.set_mesh(sharding.mesh_of(self.model.params)):
            each = [_gradient(edit, *given, batch.rewritten, jnp.float32(weight)) for batch in batches]
            return sum(each[1:], each[0]) / len(each)

    def flipped(self, edit: LearnedEdit, batches: Sequence[RewrittenBatch]) -> float:
        """The share of studies whose rewritten report the edited model finds more likely than their own."""
        given = (self._params, self.model.cfg, self.model.site.code)
        with jax.set_mesh(sharding.mesh_of(self.model.params)):
            found = [
                np.asarray(_nats(edit, *given, batch.rewritten)[0]) < np.asarray(_nats(edit, *given, batch.own)[0])
                for batch in batches
            ]
        return float(np.concatenate(found).mean())

    def largest(self, value: Callable[[jax.Array], jax.Array], batches: Sequence[RewrittenBatch]) -> float:
        """The largest value at the edited tokens; `value` maps the residual stream [B, T, d_model] to [B, T]."""
        with jax.set_mesh(sharding.mesh_of(self.model.params)):
            each = (
                jnp.where(
                    own.edited, value(_at_site(self._params, self.model.cfg, self.model.site.code, own)), -jnp.inf
                )
                for own in (batch.rewritten for batch in batches)
            )
            return max(float(found.max()) for found in each)


def _edited(model: EditedModel, batch: InputBatch) -> np.ndarray:
    """Which tokens are edited, bool [B, T]; with the report's also the prompt's last one, which produces the first."""
    edited = model.edited(batch.kinds) & batch.mask
    report = batch.kinds == Kind.FINDINGS
    if (edited & report).any():
        edited[:, :-1] |= report[:, 1:]
    return edited


@functools.partial(jax.jit, static_argnames=("cfg", "code"))
def _residual(
    params: Params, cfg: Maira2Config, code: int, tokens: jax.Array, mask: jax.Array, pixels: jax.Array | None
) -> jax.Array:
    first = Site.whole_blocks(code)
    name = f"language.{first - 1}.resid_post" if first else "language.embed"
    found = maira2.forward(params, cfg, tokens, mask, pixels, read=(Site.parse(name, cfg),), logits=False)
    return found.sites[name]


def _rest(params: Params, cfg: Maira2Config, code: int, batch: ScoredReports, **more: Any) -> jax.Array:
    """The residual stream [B, T, d_model] after the blocks from the first one on that an edit changes."""
    first = Site.whole_blocks(code)
    text = dataclasses.replace(cfg.text, num_hidden_layers=cfg.text.num_hidden_layers - first)
    positions = jnp.broadcast_to(jnp.arange(batch.residual.shape[1]), batch.edited.shape)
    blocks = {"layers": params["language"]["layers"][first:]}
    return language.forward(blocks, text, batch.residual, positions, batch.length, **more)[0]


@functools.partial(jax.jit, static_argnames=("cfg", "code"))
def _at_site(params: Params, cfg: Maira2Config, code: int, batch: ScoredReports) -> jax.Array:
    own = code - Site.shifted(0, Site.whole_blocks(code))
    return _rest(params, cfg, code, batch, stop=own)


@functools.partial(jax.jit, static_argnames=("cfg", "code"))
def _nats(
    edit: LearnedEdit, params: Params, cfg: Maira2Config, code: int, batch: ScoredReports
) -> tuple[jax.Array, jax.Array]:
    """The negative log-likelihood of each report under the edited model, [B], and the edit's penalty."""
    own = code - Site.shifted(0, Site.whole_blocks(code))
    x = _at_site(params, cfg, code, batch)
    changed, penalty = edit.apply(x.astype(jnp.float32), batch.edited)
    changed = changed.astype(x.dtype)
    x = _rest(params, cfg, code, batch, hook=lambda x, here: jnp.where(here == own, changed, x))
    x = maira2.at_positions(x, batch.places)  # [B, R, d_model]
    logs = jax.nn.log_softmax(language.logits(params["language"], cfg.text, x).astype(jnp.float32))  # [B, R, vocab]
    each = jnp.take_along_axis(logs, batch.tokens[..., None], axis=-1)[..., 0]  # [B, R]
    return -jnp.where(batch.counted, each, 0).sum(axis=1), penalty


@functools.partial(jax.jit, static_argnames=("cfg", "code"))
def _gradient(
    edit: LearnedEdit, params: Params, cfg: Maira2Config, code: int, batch: ScoredReports, weight: jax.Array
) -> jax.Array:
    def loss(learned: jax.Array) -> jax.Array:
        nats, penalty = _nats(edit.replace(learned=learned), params, cfg, code, batch)
        return nats.sum() / batch.counted.sum() + weight * penalty

    return jax.grad(loss)(edit.learned)

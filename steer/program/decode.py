"""The decoding loop of a sweep: for each study the same rows, each with its own edit, written by one jitted program.

A study's image and prompt are read once for all its rows, which share the keys and values of

* every layer, where only generated tokens are edited;
* the layers before the edit, where the prompt is edited too; the later ones are read again for each row.

Only `slots` rows of a study are written at a time. When a row ends, the study's next row takes its slot within the
program, so that no slot waits for the longest report. All shapes are those of the sweep: features, strengths and
studies are traced, and changing them compiles nothing.

`maira_jax.generation.decode` is the plain loop: one text for each prompt, all written until the longest one ends. This
one exists for speed: a prompt is many times as long as a report, and a sweep writes dozens of reports for each. Tests
show that the two write the same tokens.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Self, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.sharding import PartitionSpec as P

from maira_jax.generation.decode import Sampling, choose
from maira_jax.model import language, maira2
from maira_jax.model.cache import Heads, PromptCache, SharedCache, SharedMask
from maira_jax.model.config import Maira2Config, TextConfig
from maira_jax.model.layers import Params
from maira_jax.model.maira2 import Edits
from maira_jax.model.sites import Site

_STEPS = 32  # tokens in each slot between two reports of the progress


@dataclasses.dataclass(frozen=True)
class SweepShape:
    """The static part of a sweep.

    Attributes:
      slots: the number of rows of a study that are written at a time.
      max_new_tokens: the largest number of tokens of a report.
      eos_id: the end token, which stops its row.
      tower: the tower that is edited; an edit of the vision tower or of the projector acts on every patch.
      first_layer: the first block of the language model whose keys and values depend on an edit of the prompt; None
        where no prompt is edited.
    """

    slots: int
    max_new_tokens: int
    eos_id: int
    tower: str = "language"
    first_layer: int | None = None

    @classmethod
    def of(cls, site: Site, prompt: bool, *, slots: int, max_new_tokens: int, eos_id: int) -> Self:
        """The shape of a sweep that edits `site`, on generated tokens only or on tokens of the `prompt` as well."""
        reached = Site.whole_blocks(site.code) if prompt else None
        first_layer = reached if site.tower == "language" else 0
        return cls(slots, max_new_tokens, eos_id, site.tower, first_layer)


@struct.dataclass
class PromptPrefixes:
    """Prompts that have been read. p is the length that the prompts are padded to.

    last: [studies, 1, d_model], the embedding of the last token, the first one that is decoded.
    start: int32 [studies], the last token's position.
    edited: bool [studies, p], which of the tokens before it are edited.
    last_edited: bool [studies], whether the last token is.
    prefix: `Heads` of the layers that all rows of a study share.
    residual: [studies, p, d_model], the residual stream before the first layer that they do not share.
    inputs: tokens and pixels of `prefill`, where images are encoded again for each row; else empty.
    """

    last: jax.Array
    start: jax.Array
    edited: jax.Array
    last_edited: jax.Array
    prefix: tuple[Heads, ...]
    residual: jax.Array
    inputs: tuple[jax.Array, ...]


@struct.dataclass
class SteeredRows:
    """The n rows that are written for each study, all of it traced.

    edits: the edits [n], the same for every study; their `mask` is ignored.
    edits_generated: bool [], whether the tokens that produce a token are edited.
    counts: int32 [studies], how many of the n rows are written for each study.
    sampling: how tokens are chosen, with one key per study: its rows share their draws, and differ by their edits
      alone. None always takes the most likely token.
    """

    edits: Edits
    edits_generated: jax.Array
    counts: jax.Array
    sampling: Sampling | None = None

    @classmethod
    def of(cls, edits: Edits, edits_generated: bool, counts: np.ndarray, sampling: Sampling | None = None) -> Self:
        """The rows as arrays on the device."""
        return cls(edits, jnp.asarray(edits_generated), jnp.asarray(counts, jnp.int32), sampling)

    @property
    def n(self) -> int:
        """The number of rows per study."""
        return len(self.edits.site)


@struct.dataclass
class SweepState:
    """A sweep that is being written, with n rows per study and B = studies * slots, the slots of a study adjacent.

    row: int32 [studies, slots], the row in each slot, n where there is none.
    upcoming: int32 [studies], the next row.
    age: int32 [B], how many tokens the row has.
    token: int32 [B], its last token.
    clock: int32 [], the steps since the beginning. All rows write at position clock % max_new_tokens of their caches,
      where a row's own tokens are the latest `age` ones.
    prefix: `Heads` of the layers that rows do not share, [B, ...].
    keys, values: those of the rows' own tokens, see `SharedCache`.
    written: int32 [studies, n, max_new_tokens], 0 after a row's end token.
    broken: int32 [studies, n], tokens chosen from logits that are not finite.
    """

    row: jax.Array
    upcoming: jax.Array
    age: jax.Array
    token: jax.Array
    clock: jax.Array
    prefix: tuple[Heads, ...]
    keys: tuple[jax.Array, ...]
    values: tuple[jax.Array, ...]
    written: jax.Array
    broken: jax.Array


Tree = TypeVar("Tree", PromptPrefixes, SweepState)


def partition(leaf: jax.Array) -> P:
    """The axes of the model's mesh along which an array of `PromptPrefixes` or `SweepState` lies.

    Studies, and the slots that follow them, are split over `data`; the heads of keys and values, which alone have four
    axes, over `model`.
    """
    return P(*("data", "model") if leaf.ndim == 4 else ("data",)[: leaf.ndim])


def _placed(tree: Tree) -> Tree:
    """Lays arrays along the mesh in use. Left alone, a compiler lays zeros whole on every device."""
    if jax.sharding.get_abstract_mesh().empty:
        return tree
    return jax.tree.map(lambda leaf: jax.lax.with_sharding_constraint(leaf, partition(leaf)), tree)


def _blocks(params: Params, cfg: Maira2Config, start: int, stop: int) -> tuple[Params, TextConfig]:
    """The language model's blocks from `start` to `stop`, with the configuration of a model of that depth."""
    text = dataclasses.replace(cfg.text, num_hidden_layers=stop - start)
    return {"layers": params["language"]["layers"][start:stop]}, text


@functools.partial(jax.jit, static_argnames=("cfg", "shape"))
@jax.named_scope("prefill")
def prefill(
    params: Params,
    cfg: Maira2Config,
    shape: SweepShape,
    tokens: jax.Array,
    mask: jax.Array,
    pixels: jax.Array | None,
    edited: jax.Array,
) -> PromptPrefixes:
    """Reads prompts once for all rows.

    Args:
      params: the model's parameters, `maira2.unstacked`.
      cfg: the model's configuration.
      shape: the sweep's shape.
      tokens: int32 [studies, length], padded on the right.
      mask: bool [studies, length], False on padding.
      pixels: [studies, images, image_size, image_size, 3] or None.
      edited: bool [studies, length], which tokens are edited; if `shape.first_layer` is None, all but the last one are
        ignored. An edit of images does not reach the prompt's last token, which must be a word.
    """
    features = None if pixels is None else maira2.encode_images(params, cfg, pixels)[0]
    embedded = maira2.embed(params, cfg, tokens, features)
    stop = cfg.text.num_hidden_layers if shape.first_layer is None else shape.first_layer
    blocks, text = _blocks(params, cfg, 0, stop)
    start = maira2.last_position(mask)
    x, _, cache = language.forward(blocks, text, embedded, maira2.positions_of(mask), start, cache=PromptCache())
    again = pixels is not None and shape.tower != "language"
    prompts = PromptPrefixes(
        last=maira2.at_positions(embedded, start[:, None]),
        start=start,
        edited=edited & maira2.before(start, mask),
        last_edited=jnp.take_along_axis(edited, start[:, None], axis=1)[:, 0],
        prefix=cache.prefix,
        residual=x[:, :0] if shape.first_layer is None or again else x,
        inputs=(tokens, pixels) if again else (),  # type: ignore[arg-type]
    )
    return _placed(prompts)


@functools.partial(jax.jit, static_argnames=("cfg", "shape"))
def begin(cfg: Maira2Config, shape: SweepShape, prompts: PromptPrefixes, rows: SteeredRows) -> SweepState:
    """The state before anything is written."""
    text, dtype = cfg.text, prompts.last.dtype
    (studies, p), n, batch = prompts.edited.shape, rows.n, len(prompts.edited) * shape.slots
    first = text.num_hidden_layers if shape.first_layer is None else shape.first_layer
    heads = jnp.zeros((batch, text.num_key_value_heads, p, text.head_dim), dtype)
    own = tuple((heads, heads) for _ in range(text.num_hidden_layers - first))
    slots = (batch, text.num_key_value_heads, shape.max_new_tokens, text.head_dim)
    row = jnp.broadcast_to(jnp.arange(shape.slots, dtype=jnp.int32), (studies, shape.slots))
    state = SweepState(
        row=jnp.where(row < rows.counts[:, None], row, n),
        upcoming=jnp.full((studies,), shape.slots, jnp.int32),
        age=jnp.zeros((batch,), jnp.int32),
        token=jnp.zeros((batch,), jnp.int32),
        clock=jnp.int32(0),
        prefix=own,
        keys=tuple(jnp.zeros(slots, dtype) for _ in range(text.num_hidden_layers)),
        values=tuple(jnp.zeros(slots, dtype) for _ in range(text.num_hidden_layers)),
        written=jnp.zeros((studies, n, shape.max_new_tokens), jnp.int32),
        broken=jnp.zeros((studies, n), jnp.int32),
    )
    return _placed(state)


@jax.named_scope("prefill_new_rows")
def _prefill_new_rows(
    params: Params, cfg: Maira2Config, shape: SweepShape, prompts: PromptPrefixes, edits: Edits, state: SweepState
) -> tuple[Heads, ...]:
    """Reads the prompt again, edited, for every slot that has a new row; the layers that rows do not share."""
    n, first = len(edits.site), shape.first_layer
    if first is None:
        return state.prefix
    blocks, text = _blocks(params, cfg, first, cfg.text.num_hidden_layers)
    rows = state.row.reshape(-1)

    def one(carry: tuple[jax.Array, tuple[Heads, ...]]) -> tuple[jax.Array, tuple[Heads, ...]]:
        waiting, prefix = carry
        slot = jnp.argmax(waiting)
        study = jax.tree.map(
            lambda leaf: jax.lax.dynamic_index_in_dim(leaf, slot // shape.slots, keepdims=True),
            (prompts.residual, prompts.start, prompts.edited, prompts.inputs),
        )
        x, start, edited, inputs = study
        edit = edits.picked(lambda leaf: leaf[rows[slot]][None])
        hook = edit.hook(edited) if shape.tower == "language" else None
        if inputs:
            features, _ = maira2.encode_images(params, cfg, inputs[1], edits={shape.tower: edit})
            x = maira2.embed(params, cfg, inputs[0], features)
        _, _, cache = language.forward(
            blocks,
            text,
            x,
            maira2.positions_of(edited),
            start,
            hook=None if hook is None else lambda x, code: hook(x, Site.shifted(code, first)),
            cache=PromptCache(),
        )
        put = functools.partial(jax.lax.dynamic_update_index_in_dim, index=slot, axis=0)
        prefix = jax.tree.map(lambda whole, new: put(whole, new[0]), prefix, cache.prefix)
        return waiting.at[slot].set(False), prefix

    new = (state.age == 0) & (rows < n)
    return jax.lax.while_loop(lambda carry: carry[0].any(), one, (new, state.prefix))[1]


@jax.named_scope("decode")
def _step(
    params: Params, cfg: Maira2Config, shape: SweepShape, prompts: PromptPrefixes, rows: SteeredRows, state: SweepState
) -> tuple[jax.Array, jax.Array, SweepState]:
    """One more token in each slot: the tokens [B], whether their logits are finite [B], and the state's caches."""
    row, study = state.row.reshape(-1), jnp.repeat(jnp.arange(len(prompts.start)), shape.slots)  # [B]
    prefix = _prefill_new_rows(params, cfg, shape, prompts, rows.edits, state)
    cache = SharedCache((*prompts.prefix, *prefix), state.keys, state.values)
    new = state.age == 0  # [B]
    embedded = params["language"]["embed"][state.token][:, None]
    x = jnp.where(new[:, None, None], prompts.last[study], embedded)  # [B, 1, d_model]
    ages = (state.clock - jnp.arange(shape.max_new_tokens)) % shape.max_new_tokens  # [max_new_tokens] of the cache
    hook = None
    if shape.tower == "language":
        here = jnp.where(new, prompts.last_edited[study] | rows.edits_generated, rows.edits_generated)  # [B]
        hook = rows.edits.picked(lambda leaf: leaf[row]).hook(here[:, None])
    x, _, cache = language.forward(
        params["language"],
        cfg.text,
        x,
        (prompts.start[study] + state.age)[:, None],  # [B, 1]
        SharedMask(prompts.start, (ages <= state.age[:, None])[:, None]),
        hook=hook,
        cache=cache,
        slot=state.clock % shape.max_new_tokens,
    )
    logits = language.logits(params["language"], cfg.text, x[:, 0]).astype(jnp.float32)  # [B, vocab]
    sampling = rows.sampling
    drawn = None if sampling is None else sampling.replace(keys=sampling.keys[study])  # type: ignore[attr-defined]
    choice = choose(logits, drawn, state.age)  # [B]
    state = state.replace(prefix=prefix, keys=cache.keys, values=cache.values)  # type: ignore[attr-defined]
    return choice, jnp.isfinite(logits).all(axis=-1), state


@functools.partial(jax.jit, static_argnames=("cfg", "shape"), donate_argnames=("state",))
def advance(
    params: Params,
    cfg: Maira2Config,
    shape: SweepShape,
    prompts: PromptPrefixes,
    rows: SteeredRows,
    state: SweepState,
    steps: jax.Array,
) -> SweepState:
    """Writes up to `steps` more tokens in every slot, fewer if all rows are written.

    Args:
      params: the model's parameters, `maira2.unstacked`.
      cfg: the model's configuration.
      shape: the sweep's shape.
      prompts: the prompts, read by `prefill`.
      rows: what is written.
      state: the state so far; donated.
      steps: int32 [].
    """
    n, stop = rows.n, state.clock + steps

    def unfinished(state: SweepState) -> jax.Array:
        return (state.clock < stop) & (state.row < n).any()

    def body(state: SweepState) -> SweepState:
        choice, finite, state = _step(params, cfg, shape, prompts, rows, state)
        place = (jnp.repeat(jnp.arange(len(rows.counts)), shape.slots), state.row.reshape(-1))  # study and row, [B]
        written = state.written.at[(*place, state.age)].set(choice, mode="drop")
        broken = state.broken.at[place].add(~finite, mode="drop")
        ended = (choice == shape.eos_id) | (state.age + 1 == shape.max_new_tokens)  # [B]
        free = ended.reshape(state.row.shape) | (state.row == n)  # [studies, slots]
        following = state.upcoming[:, None] + jnp.cumsum(free, axis=1) - 1  # [studies, slots]
        following = jnp.where(following < rows.counts[:, None], following, n)
        return state.replace(  # type: ignore[attr-defined]
            row=jnp.where(free, following, state.row),
            upcoming=state.upcoming + free.sum(axis=1),
            age=jnp.where(free.reshape(-1), 0, state.age + 1),
            token=choice,
            clock=state.clock + 1,
            written=written,
            broken=broken,
        )

    return jax.lax.while_loop(unfinished, body, state)


def write_rows(
    params: Params,
    cfg: Maira2Config,
    shape: SweepShape,
    prompts: PromptPrefixes,
    rows: SteeredRows,
    on_rows: Callable[[int], object] = lambda rows: None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Writes the rows of all studies.

    Args:
      params, cfg, shape, prompts, rows: the arguments of `advance`.
      on_rows: called periodically with the number of rows that have ended since the last call.

    Returns:
      Tokens int32 [studies, n, max_new_tokens], 0 after a row's end token; how many a row has, int32 [studies, n],
      its end token counted; and whether all its logits were finite, bool [studies, n].
    """
    counts, reported = np.asarray(rows.counts), 0
    state, running = begin(cfg, shape, prompts, rows), True
    while running:
        state = advance(params, cfg, shape, prompts, rows, state, jnp.int32(_STEPS))
        busy = int((np.asarray(state.row) < rows.n).sum())
        ended = int(np.minimum(np.asarray(state.upcoming), counts).sum()) - busy
        on_rows(ended - reported)
        running, reported = busy > 0, ended
    written = np.asarray(state.written)
    ends = written == shape.eos_id
    lengths = np.where(ends.any(axis=-1), ends.argmax(axis=-1) + 1, shape.max_new_tokens)
    return written, lengths, np.asarray(state.broken) == 0


@functools.partial(jax.jit, static_argnames=("cfg",))
@jax.named_scope("mean_nll")
def mean_nll(
    params: Params, cfg: Maira2Config, prompts: PromptPrefixes, tokens: jax.Array, lengths: jax.Array
) -> jax.Array:
    """Mean negative log-likelihood per token, under the unedited model, of texts as continuations of the prompts.

    Args:
      params: the model's parameters, `maira2.unstacked`.
      cfg: the model's configuration.
      prompts: the prompts, read with all layers shared.
      tokens: int32 [studies, n, t].
      lengths: int32 [studies, n], how many of the tokens count.

    Returns:
      float32 [studies, n], in nats.
    """
    t = tokens.shape[-1]
    causal = jnp.broadcast_to(jnp.tri(t, dtype=bool), (len(tokens), t, t))

    def one(row: tuple[jax.Array, jax.Array]) -> jax.Array:
        ids, length = row  # [studies, t], [studies]
        x = jnp.concatenate([prompts.last, params["language"]["embed"][ids[:, :-1]]], axis=1)  # [studies, t, d_model]
        x, _, _ = language.forward(
            params["language"],
            cfg.text,
            x,
            prompts.start[:, None] + jnp.arange(t),
            SharedMask(prompts.start, causal),
            cache=SharedCache.zeros(prompts.prefix, len(ids), t),
        )
        logits = language.logits(params["language"], cfg.text, x).astype(jnp.float32)
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), ids[..., None], axis=-1)[..., 0]
        counted = jnp.arange(t) < length[:, None]
        return -jnp.where(counted, chosen, 0).sum(axis=1) / length

    return jax.lax.map(one, (tokens.swapaxes(0, 1), lengths.swapaxes(0, 1))).swapaxes(0, 1)


@jax.named_scope("continued")
def continued(
    params: Params, cfg: Maira2Config, shape: SweepShape, prompts: PromptPrefixes, rows: SteeredRows, tokens: jax.Array
) -> jax.Array:
    """What rows that are edited expect at each token of a text that continues the prompt.

    Args:
      params: the model's parameters, `maira2.unstacked`.
      cfg: the model's configuration.
      shape: the shape of the rows, with a slot for each.
      prompts: the prompts, read by `prefill`.
      rows: the rows.
      tokens: int32 [studies, t], a text of each study.

    Returns:
      [studies, n, t, d_model], the residual stream after the last block at the places that the t tokens follow.
    """
    (studies, t), n = tokens.shape, rows.n
    assert n == shape.slots
    state = begin(cfg, shape, prompts, rows)
    prefix = _prefill_new_rows(params, cfg, shape, prompts, rows.edits, state)
    study, row = jnp.repeat(jnp.arange(studies), n), jnp.tile(jnp.arange(n), studies)  # [B] each
    x = jnp.concatenate([prompts.last, params["language"]["embed"][tokens[:, :-1]]], axis=1)[study]  # [B, t, d_model]
    hook = None
    if shape.tower == "language":
        first = prompts.last_edited[study, None] & (jnp.arange(t) == 0)  # [B, t]
        hook = rows.edits.picked(lambda leaf: leaf[row]).hook(first | rows.edits_generated)
    causal = jnp.broadcast_to(jnp.tri(t, dtype=bool), (studies * n, t, t))
    x, _, _ = language.forward(
        params["language"],
        cfg.text,
        x,
        (prompts.start[:, None] + jnp.arange(t))[study],
        SharedMask(prompts.start, causal),
        hook=hook,
        cache=SharedCache.zeros((*prompts.prefix, *prefix), studies * n, t),
    )
    return x.reshape(studies, n, t, -1)

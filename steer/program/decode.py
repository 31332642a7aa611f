"""Sweeps: for each of some studies the same rows, each row with its own edit, written by one jitted program.

A study's image and prompt are read once for all its rows, which share the keys and values of

* every layer, where only generated tokens are edited;
* the layers before the edit, where the prompt is edited too; the later ones are read again for each row.

Only `slots` rows of a study are written at a time. A row that ends gives its place to the study's next one, within the
program, so that no place waits for the longest report. All shapes are those of the sweep: features, strengths and
studies are traced, and changing them compiles nothing.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from maira_jax.generation.decode import Sampling, choose
from maira_jax.model import language, maira2
from maira_jax.model.cache import Cache, Heads, SharedCache, heads_first
from maira_jax.model.config import Maira2Config, TextConfig
from maira_jax.model.layers import Params, unstack
from maira_jax.model.maira2 import Edits
from maira_jax.model.sites import Site

_STEPS = 32  # tokens a place between two looks at the progress


@dataclasses.dataclass(frozen=True)
class Shape:
    """What is static of a sweep.

    Attributes:
      slots: rows of a study that are written at a time.
      max_new_tokens: longest report.
      eos_id: the end token, which stops its row.
      tower: that is edited; an edit of the vision tower or of the projector acts on all that they see.
      first_layer: the language model's blocks from here on depend on the edit of the prompt; None where no prompt is
        edited.
    """

    slots: int
    max_new_tokens: int
    eos_id: int
    tower: str = "language"
    first_layer: int | None = None

    @classmethod
    def of(cls, site: Site, prompt: bool, *, slots: int, max_new_tokens: int, eos_id: int) -> Self:
        """The shape of a sweep that edits `site`, of generated tokens only or of the `prompt` as well."""
        reached = site.code // 2 if prompt else None
        first_layer = reached if site.tower == "language" else 0
        return cls(slots, max_new_tokens, eos_id, site.tower, first_layer)


@struct.dataclass
class Prefixes:
    """Prefixes that have been read. p is one less than the length that the prompts are padded to.

    last: [studies, 1, d_model], the embedding of the last token, the first one that is decoded.
    start: int32 [studies], the last token's position.
    mask: bool [studies, p], the other tokens, False on padding.
    edited: bool [studies, p + 1], the edited tokens.
    prefix: `Heads` of the layers that all rows of a study share.
    residual: [studies, p, d_model], the residual stream before the first layer that they do not share.
    inputs: tokens and pixels of `read`, where the images are to be seen again; else empty.
    """

    last: jax.Array
    start: jax.Array
    mask: jax.Array
    edited: jax.Array
    prefix: tuple[Heads, ...]
    residual: jax.Array
    inputs: tuple[jax.Array, ...]


@struct.dataclass
class State:
    """A sweep that is being written; B = studies * slots places, those of a study side by side, n rows a study.

    row: int32 [studies, slots], the row in each place, n where there is none.
    upcoming: int32 [studies], the next row.
    age: int32 [B], how many tokens the row has.
    token: int32 [B], its last one.
    clock: int32 [], tokens since the beginning. All rows write at slot clock % max_new_tokens of their caches, where
      a row's own tokens are the latest `age` ones.
    prefix: `Heads` of the layers that rows do not share, [B, ...].
    keys, values: of the rows' own tokens, see `SharedCache`.
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


def apart(params: Params) -> Params:
    """The model with the language model's layers apart, as a sweep wants it."""
    return params | {"language": params["language"] | {"layers": unstack(params["language"]["layers"])}}


def _blocks(params: Params, cfg: Maira2Config, start: int, stop: int) -> tuple[Params, TextConfig]:
    """The language model's blocks from `start` to `stop` as a model of their own."""
    text = dataclasses.replace(cfg.text, num_hidden_layers=stop - start)
    return {"layers": params["language"]["layers"][start:stop]}, text


def _seen(mask: jax.Array) -> jax.Array:
    """What each position of a prompt sees of it. mask: bool [n, p] -> bool [n, 1, p, p]."""
    return jnp.tril(jnp.ones((mask.shape[1],) * 2, bool)) & mask[:, None, None]


def _heads(cache: Cache) -> tuple[Heads, ...]:
    return tuple(heads_first(cache.keys[layer], cache.values[layer]) for layer in range(len(cache.keys)))


@functools.partial(jax.jit, static_argnames=("cfg", "shape"))
def read(
    params: Params,
    cfg: Maira2Config,
    shape: Shape,
    tokens: jax.Array,
    mask: jax.Array,
    pixels: jax.Array | None,
    edited: jax.Array,
) -> Prefixes:
    """Reads prompts once for all rows.

    Args:
      params: with the language model's layers `apart`.
      tokens: int32 [studies, length], padded on the left.
      mask: bool [studies, length], False on padding.
      pixels: [studies, images, image_size, image_size, 3] or None.
      edited: bool [studies, length], which tokens are edited; of no account if `shape.first_layer` is None but for the
        last one. An edit of images does not reach the prompt's last token, which must be a word.
    """
    features = None if pixels is None else maira2.see(params, cfg, pixels)[0]
    embedded = maira2.embed(params, cfg, tokens, features)
    stop = cfg.text.num_hidden_layers if shape.first_layer is None else shape.first_layer
    blocks, text = _blocks(params, cfg, 0, stop)
    x = embedded[:, :-1]
    x, _, cache = language.forward(
        blocks,
        text,
        x,
        maira2.positions_of(mask)[:, :-1],
        _seen(mask[:, :-1]),
        cache=Cache.zeros(text, x.shape[0], x.shape[1], x.dtype),
        slot=jnp.int32(0),
    )
    start = jnp.sum(mask, axis=1, dtype=jnp.int32) - 1
    again = pixels is not None and shape.tower != "language"
    return Prefixes(
        last=embedded[:, -1:],
        start=start,
        mask=mask[:, :-1],
        edited=edited & mask,
        prefix=_heads(cache),
        residual=x[:, :0] if shape.first_layer is None or again else x,
        inputs=(tokens, pixels) if again else (),  # type: ignore[arg-type]
    )


@functools.partial(jax.jit, static_argnames=("cfg", "shape"))
def begin(cfg: Maira2Config, shape: Shape, prompts: Prefixes, edits: Edits, count: jax.Array) -> State:
    """A sweep with nothing written.

    Args:
      edits: of n rows, the same for every study.
      count: int32 [studies], how many of the n rows are written for each study.
    """
    text, dtype = cfg.text, prompts.last.dtype
    (studies, p), n, places = prompts.mask.shape, len(edits.site), len(prompts.mask) * shape.slots
    first = text.num_hidden_layers if shape.first_layer is None else shape.first_layer
    keys = jnp.zeros((places, text.num_key_value_heads, text.head_dim, p), dtype)
    own = tuple((keys, keys.swapaxes(2, 3)) for _ in range(text.num_hidden_layers - first))
    slots = (places, text.num_key_value_heads, shape.max_new_tokens, text.head_dim)
    row = jnp.broadcast_to(jnp.arange(shape.slots, dtype=jnp.int32), (studies, shape.slots))
    return State(
        row=jnp.where(row < count[:, None], row, n),
        upcoming=jnp.full((studies,), shape.slots, jnp.int32),
        age=jnp.zeros((places,), jnp.int32),
        token=jnp.zeros((places,), jnp.int32),
        clock=jnp.int32(0),
        prefix=own,
        keys=tuple(jnp.zeros(slots, dtype) for _ in range(text.num_hidden_layers)),
        values=tuple(jnp.zeros(slots, dtype) for _ in range(text.num_hidden_layers)),
        written=jnp.zeros((studies, n, shape.max_new_tokens), jnp.int32),
        broken=jnp.zeros((studies, n), jnp.int32),
    )


def _reread(
    params: Params, cfg: Maira2Config, shape: Shape, prompts: Prefixes, edits: Edits, state: State
) -> tuple[Heads, ...]:
    """Reads the prompt again, edited, for every place that has a new row; the layers that rows do not share."""
    n, first = len(edits.site), shape.first_layer
    if first is None:
        return state.prefix
    blocks, text = _blocks(params, cfg, first, cfg.text.num_hidden_layers)
    rows = state.row.reshape(-1)

    def one(carry: tuple[jax.Array, tuple[Heads, ...]]) -> tuple[jax.Array, tuple[Heads, ...]]:
        waiting, prefix = carry
        place = jnp.argmax(waiting)
        study = jax.tree.map(
            lambda leaf: jax.lax.dynamic_index_in_dim(leaf, place // shape.slots, keepdims=True),
            (prompts.residual, prompts.mask, prompts.edited, prompts.inputs),
        )
        x, mask, edited, inputs = study
        edit = jax.tree.map(lambda leaf: leaf[rows[place]][None], edits)
        tap = edit.tap(edited[:, :-1]) if shape.tower == "language" else None
        if inputs:
            features, _ = maira2.see(params, cfg, inputs[1], edits={shape.tower: edit})
            x = maira2.embed(params, cfg, inputs[0], features)[:, :-1]
        _, _, cache = language.forward(
            blocks,
            text,
            x,
            maira2.positions_of(mask),
            _seen(mask),
            edit=None if tap is None else lambda x, code: tap(x, code + 2 * first),
            cache=Cache.zeros(text, x.shape[0], x.shape[1], x.dtype),
            slot=jnp.int32(0),
        )
        put = functools.partial(jax.lax.dynamic_update_index_in_dim, index=place, axis=0)
        prefix = jax.tree.map(lambda whole, new: put(whole, new[0]), prefix, _heads(cache))
        return waiting.at[place].set(False), prefix

    new = (state.age == 0) & (rows < n)
    return jax.lax.while_loop(lambda carry: carry[0].any(), one, (new, state.prefix))[1]


def _step(
    params: Params,
    cfg: Maira2Config,
    shape: Shape,
    prompts: Prefixes,
    edits: Edits,
    generated: jax.Array,
    state: State,
    sampling: Sampling | None,
) -> tuple[jax.Array, jax.Array, State]:
    """One more token for each place: the tokens and whether they are beyond doubt, [B], and the caches."""
    rows, study = state.row.reshape(-1), jnp.repeat(jnp.arange(len(prompts.start)), shape.slots)
    prefix = _reread(params, cfg, shape, prompts, edits, state)
    cache = SharedCache((*prompts.prefix, *prefix), state.keys, state.values)
    new = state.age == 0
    x = jnp.where(new[:, None, None], prompts.last[study], params["language"]["embed"][state.token][:, None])
    ages = (state.clock - jnp.arange(shape.max_new_tokens)) % shape.max_new_tokens  # of each slot of a cache
    tap = None
    if shape.tower == "language":
        where = jnp.where(new, prompts.edited[study, -1] | generated, generated)
        tap = jax.tree.map(lambda leaf: leaf[rows], edits).tap(where[:, None])
    x, _, cache = language.forward(
        params["language"],
        cfg.text,
        x,
        (prompts.start[study] + state.age)[:, None],
        (prompts.mask, (ages <= state.age[:, None])[:, None]),
        edit=tap,
        cache=cache,
        slot=state.clock % shape.max_new_tokens,
    )
    logits = language.logits(params["language"], cfg.text, x[:, 0]).astype(jnp.float32)
    drawn = None if sampling is None else sampling.replace(keys=sampling.keys[study])  # type: ignore[attr-defined]
    choice = choose(logits, drawn, state.age)
    state = state.replace(prefix=prefix, keys=cache.keys, values=cache.values)  # type: ignore[attr-defined]
    return choice, jnp.isfinite(logits).all(axis=-1), state


@functools.partial(jax.jit, static_argnames=("cfg", "shape"), donate_argnames=("state",))
def advance(
    params: Params,
    cfg: Maira2Config,
    shape: Shape,
    prompts: Prefixes,
    edits: Edits,
    generated: jax.Array,
    count: jax.Array,
    state: State,
    steps: jax.Array,
    sampling: Sampling | None = None,
) -> State:
    """Writes up to `steps` more tokens in every place, fewer if all rows are written.

    Args:
      params: with the language model's layers `apart`.
      edits: of n rows, the same for every study; their `mask` is of no account.
      generated: bool [], whether the tokens that produce a token are edited.
      count: int32 [studies], how many of the n rows are written for each study.
      state: donated.
      sampling: how tokens are chosen, `keys` one a study: its rows share their draws, and differ by their edits alone.
        None always takes the most likely token.
    """
    n, stop = len(edits.site), state.clock + steps

    def going(state: State) -> jax.Array:
        return (state.clock < stop) & (state.row < n).any()

    def body(state: State) -> State:
        choice, sound, state = _step(params, cfg, shape, prompts, edits, generated, state, sampling)
        place = (jnp.repeat(jnp.arange(len(count)), shape.slots), state.row.reshape(-1))
        written = state.written.at[(*place, state.age)].set(choice, mode="drop")
        broken = state.broken.at[place].add(~sound, mode="drop")
        ended = (choice == shape.eos_id) | (state.age + 1 == shape.max_new_tokens)
        free = ended.reshape(state.row.shape) | (state.row == n)
        following = state.upcoming[:, None] + jnp.cumsum(free, axis=1) - 1
        following = jnp.where(following < count[:, None], following, n)
        return state.replace(  # type: ignore[attr-defined]
            row=jnp.where(free, following, state.row),
            upcoming=state.upcoming + free.sum(axis=1),
            age=jnp.where(free.reshape(-1), 0, state.age + 1),
            token=choice,
            clock=state.clock + 1,
            written=written,
            broken=broken,
        )

    return jax.lax.while_loop(going, body, state)


def write(
    params: Params,
    cfg: Maira2Config,
    shape: Shape,
    prompts: Prefixes,
    edits: Edits,
    generated: bool,
    count: np.ndarray,
    on_rows: Callable[[int], object] = lambda rows: None,
    sampling: Sampling | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Writes the rows of all studies.

    Args:
      edits, generated, count, sampling: see `advance`.
      on_rows: is told now and then how many more rows have come to an end.

    Returns:
      Tokens int32 [studies, n, max_new_tokens], 0 after a row's end token; how many a row has, int32 [studies, n],
      its end token counted; and whether all its logits were finite, bool [studies, n].
    """
    n, wanted, reported = len(edits.site), jnp.asarray(count, jnp.int32), 0
    state, going = begin(cfg, shape, prompts, edits, wanted), True
    while going:
        state = advance(
            params, cfg, shape, prompts, edits, jnp.asarray(generated), wanted, state, jnp.int32(_STEPS), sampling
        )
        running = np.asarray(state.row) < n
        begun = np.minimum(np.asarray(state.upcoming), count).sum()
        going = bool(running.any())
        on_rows(int(begun - running.sum()) - reported)
        reported = int(begun - running.sum())
    written = np.asarray(state.written)
    ends = written == shape.eos_id
    lengths = np.where(ends.any(axis=-1), ends.argmax(axis=-1) + 1, shape.max_new_tokens)
    return written, lengths, np.asarray(state.broken) == 0


@functools.partial(jax.jit, static_argnames=("cfg",))
def surprise(params: Params, cfg: Maira2Config, prompts: Prefixes, tokens: jax.Array, lengths: jax.Array) -> jax.Array:
    """How unlikely the unedited model finds texts as continuations of the prompts: nats a token, float32 [studies, n].

    Args:
      params: with the language model's layers `apart`.
      prompts: read with all layers shared.
      tokens: int32 [studies, n, t].
      lengths: int32 [studies, n], how many of the tokens count.
    """
    t = tokens.shape[-1]
    causal = jnp.broadcast_to(jnp.tril(jnp.ones((t, t), bool)), (len(tokens), t, t))

    def one(row: tuple[jax.Array, jax.Array]) -> jax.Array:
        ids, length = row  # [studies, t], [studies]
        x = jnp.concatenate([prompts.last, params["language"]["embed"][ids[:, :-1]]], axis=1)
        x, _, _ = language.forward(
            params["language"],
            cfg.text,
            x,
            prompts.start[:, None] + jnp.arange(t),
            (prompts.mask, causal),
            cache=SharedCache.zeros(prompts.prefix, len(ids), t),
            slot=jnp.int32(0),
        )
        logits = language.logits(params["language"], cfg.text, x).astype(jnp.float32)
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), ids[..., None], axis=-1)[..., 0]
        counted = jnp.arange(t) < length[:, None]
        return -jnp.where(counted, chosen, 0).sum(axis=1) / length

    return jax.lax.map(one, (tokens.swapaxes(0, 1), lengths.swapaxes(0, 1))).swapaxes(0, 1)

"""Greedy generation: jitted prefill and decode in one program, with edits of the residual stream."""

import functools

import jax
import jax.numpy as jnp

from maira_jax.model import language, maira2
from maira_jax.model.cache import Cache
from maira_jax.model.config import Maira2Config
from maira_jax.model.layers import Params
from maira_jax.model.maira2 import Edits


def _prefill(
    params: Params,
    cfg: Maira2Config,
    tokens: jax.Array,
    mask: jax.Array,
    pixels: jax.Array | None,
    slots: int,
    edits: Edits | None,
) -> tuple[jax.Array, Cache]:
    """Runs a prompt's all but last positions: the last one's embedding [batch, 1, d_model], and the others' cache."""
    features = None if pixels is None else maira2.see(params, cfg, pixels)[0]
    embedded = maira2.embed(params, cfg, tokens, features)
    x = embedded[:, :-1]
    batch, length, _ = x.shape
    causal = jnp.arange(slots) <= jnp.arange(length)[:, None]
    keys = jnp.pad(mask, ((0, 0), (0, slots - mask.shape[1])))
    prompt_edit = edits is not None and edits.mask is not None
    _, _, cache = language.forward(
        params["language"],
        cfg.text,
        x,
        maira2.positions_of(mask)[:, :-1],
        causal[None, None] & keys[:, None, None],
        edit=edits.tap((edits.mask & mask)[:, :-1]) if prompt_edit else None,  # type: ignore[union-attr, operator]
        cache=Cache.zeros(cfg.text, batch, slots, x.dtype),
        slot=jnp.int32(0),
    )
    assert cache is not None
    return embedded[:, -1:], cache


@functools.partial(jax.jit, static_argnames=("cfg", "max_new_tokens", "eos_id"))
def generate(
    params: Params,
    cfg: Maira2Config,
    tokens: jax.Array,
    mask: jax.Array,
    pixels: jax.Array | None,
    *,
    max_new_tokens: int,
    eos_id: int,
    edits: Edits | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Writes the most likely next token until every row has its end token or `max_new_tokens`.

    The prompt's last token is the first one that is decoded, so that an edit of the generated part acts on
    every choice of a token, the first included, and the rest of the prompt is the same whatever is edited.

    Args:
      tokens: [batch, positions] int32, padded on the left.
      mask: bool [batch, positions], False on padding.
      pixels: [batch, images, image_size, image_size, 3] or None.
      max_new_tokens: static.
      eos_id: static; the end token, which stops its row.
      edits: see `Edits`.

    Returns:
      New tokens int32 [batch, max_new_tokens], 0 after a row's end token, and how many a row has, int32 [batch],
      its end token counted.
    """
    batch, length = tokens.shape
    slots = length + max_new_tokens - 1
    last, cache = _prefill(params, cfg, tokens, mask, pixels, slots, edits)
    keys = jnp.pad(mask, ((0, 0), (0, slots - length)), constant_values=True)
    start = jnp.sum(mask, axis=1, dtype=jnp.int32) - 1
    edit = None if edits is None else edits.tap(jnp.ones((batch, 1), bool))

    def going(state: tuple) -> jax.Array:
        step, _, _, done, _ = state
        return (step < max_new_tokens) & ~jnp.all(done)

    def decode(state: tuple) -> tuple:
        step, last, written, done, cache = state
        slot = length - 1 + step
        x, _, cache = language.forward(
            params["language"],
            cfg.text,
            last,
            (start + step)[:, None],
            (keys & (jnp.arange(slots) <= slot))[:, None, None],
            edit=edit,
            cache=cache,
            slot=slot,
        )
        choice = jnp.argmax(language.logits(params["language"], cfg.text, x[:, 0]), axis=-1).astype(jnp.int32)
        choice = jnp.where(done, 0, choice)
        written = jax.lax.dynamic_update_slice(written, choice[:, None], (0, step))
        return step + 1, params["language"]["embed"][choice][:, None], written, done | (choice == eos_id), cache

    written = jnp.zeros((batch, max_new_tokens), jnp.int32)
    state = (jnp.int32(0), last, written, jnp.zeros((batch,), bool), cache)
    _, _, written, _, _ = jax.lax.while_loop(going, decode, state)
    ends = written == eos_id
    lengths = jnp.where(ends.any(axis=1), jnp.argmax(ends, axis=1) + 1, max_new_tokens)
    return written, lengths.astype(jnp.int32)

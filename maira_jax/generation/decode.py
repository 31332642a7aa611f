"""Generation, greedy or sampled: jitted prefill and decode in one program, with edits of the residual stream."""

import functools
import hashlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from maira_jax.model import language, maira2
from maira_jax.model.cache import Cache
from maira_jax.model.config import Maira2Config
from maira_jax.model.layers import Params
from maira_jax.model.maira2 import AllEdits


@struct.dataclass
class Sampling:
    """How tokens are chosen. All fields are traced: one compiled program serves every temperature and top_p.

    keys: random keys [batch], a row its own (`row_keys`), so that a row's draws do not depend on its company.
    temperature: float32 [], which logits are divided by; 0 takes the most likely token.
    top_p: float32 [] in (0, 1]; only the fewest most likely tokens whose probabilities add up to it can be drawn.
    """

    keys: jax.Array
    temperature: jax.Array
    top_p: jax.Array


def row_keys(names: Sequence[str], seed: int) -> jax.Array:
    """A random key for each row [batch], from its name (a study's id, say) and nothing else but the seed."""
    digests = [hashlib.sha256(f"{seed}:{name}".encode()).digest()[:8] for name in names]
    data = np.frombuffer(b"".join(digests), ">u4").astype(np.uint32).reshape(-1, 2)
    return jax.random.wrap_key_data(jnp.asarray(data), impl="threefry2x32")


def keep_top_p(logits: jax.Array, top_p: jax.Array) -> jax.Array:
    """Sets the logits of all but the most likely tokens to -inf.

    The fewest most likely tokens whose probabilities add up to `top_p` or more are kept, and those as likely as the
    last of them; as transformers' `TopPLogitsWarper`, which decides among the equally likely at will.

    Args:
      logits: [batch, vocab] float32.
      top_p: [] in (0, 1].
    """
    ascending = jnp.sort(logits, axis=-1)
    removed = (jnp.cumsum(jax.nn.softmax(ascending, axis=-1), axis=-1) <= 1 - top_p) & (top_p < 1)
    first = jnp.minimum(jnp.sum(removed, axis=-1, keepdims=True), logits.shape[-1] - 1)
    return jnp.where(logits >= jnp.take_along_axis(ascending, first, axis=-1), logits, -jnp.inf)


def choose(logits: jax.Array, sampling: Sampling | None = None, step: jax.Array | int = 0) -> jax.Array:
    """The next token of each row, int32 [batch].

    Args:
      logits: [batch, vocab] float32.
      sampling: None takes the most likely token, as does temperature 0.
      step: which token of its row it is, int32 [] or [batch]; each step draws with a key of its own.
    """

    def greedy() -> jax.Array:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)

    def draw() -> jax.Array:
        assert sampling is not None
        kept = keep_top_p(logits / sampling.temperature, sampling.top_p)
        keys = jax.vmap(jax.random.fold_in)(sampling.keys, jnp.broadcast_to(step, logits.shape[:1]))
        return jax.vmap(jax.random.categorical)(keys, kept).astype(jnp.int32)

    return greedy() if sampling is None else jax.lax.cond(sampling.temperature > 0, draw, greedy)


def _prefill(
    params: Params,
    cfg: Maira2Config,
    tokens: jax.Array,
    mask: jax.Array,
    pixels: jax.Array | None,
    slots: int,
    edits: AllEdits,
) -> tuple[jax.Array, Cache]:
    """Runs a prompt's all but last positions: the last one's embedding [batch, 1, d_model], and the others' cache."""
    features = None if pixels is None else maira2.see(params, cfg, pixels, edits=edits)[0]
    embedded = maira2.embed(params, cfg, tokens, features)
    x = embedded[:, :-1]
    batch, length, _ = x.shape
    causal = jnp.arange(slots) <= jnp.arange(length)[:, None]
    keys = jnp.pad(mask, ((0, 0), (0, slots - mask.shape[1])))
    change = maira2.edits_of(edits, "language")
    where = None if change is None else change.mask
    _, _, cache = language.forward(
        params["language"],
        cfg.text,
        x,
        maira2.positions_of(mask)[:, :-1],
        causal[None, None] & keys[:, None, None],
        edit=None if change is None or where is None else change.tap((where & mask)[:, :-1]),
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
    edits: AllEdits = None,
    sampling: Sampling | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Writes one token after the other until every row has its end token or `max_new_tokens`.

    The prompt's last token is the first one that is decoded, so that an edit of the generated part acts on
    every choice of a token, the first included, and the rest of the prompt is the same whatever is edited.

    Args:
      tokens: [batch, positions] int32, padded on the left.
      mask: bool [batch, positions], False on padding.
      pixels: [batch, images, image_size, image_size, 3] or None.
      max_new_tokens: static.
      eos_id: static; the end token, which stops its row.
      edits: see `Edits`.
      sampling: how tokens are chosen; None always takes the most likely one.

    Returns:
      New tokens int32 [batch, max_new_tokens], 0 after a row's end token, and how many a row has, int32 [batch],
      its end token counted.
    """
    batch, length = tokens.shape
    slots = length + max_new_tokens - 1
    last, cache = _prefill(params, cfg, tokens, mask, pixels, slots, edits)
    keys = jnp.pad(mask, ((0, 0), (0, slots - length)), constant_values=True)
    start = jnp.sum(mask, axis=1, dtype=jnp.int32) - 1
    change = maira2.edits_of(edits, "language")
    edit = None if change is None else change.tap(jnp.ones((batch, 1), bool))

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
        logits = language.logits(params["language"], cfg.text, x[:, 0]).astype(jnp.float32)
        choice = jnp.where(done, 0, choose(logits, sampling, step))
        written = jax.lax.dynamic_update_slice(written, choice[:, None], (0, step))
        return step + 1, params["language"]["embed"][choice][:, None], written, done | (choice == eos_id), cache

    written = jnp.zeros((batch, max_new_tokens), jnp.int32)
    state = (jnp.int32(0), last, written, jnp.zeros((batch,), bool), cache)
    _, _, written, _, _ = jax.lax.while_loop(going, decode, state)
    ends = written == eos_id
    lengths = jnp.where(ends.any(axis=1), jnp.argmax(ends, axis=1) + 1, max_new_tokens)
    return written, lengths.astype(jnp.int32)

"""Generation, greedy or sampled: prefill and decode in one jitted program, with edits of the residual stream.

There are two decoding loops. This one writes one text per prompt, which is all that reports need. That of
`steer/program/decode.py` writes many texts per prompt, each with an edit of its own: there, texts share the keys and
values of their prompt, and a text that ends gives its slot to the next one. Both choose tokens by `choose`.
"""

import functools
import hashlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from maira_jax.model import language, maira2
from maira_jax.model.cache import Heads, PromptCache, SharedCache, SharedMask
from maira_jax.model.config import Maira2Config
from maira_jax.model.layers import Params
from maira_jax.model.maira2 import AllEdits, Edits


@struct.dataclass
class Sampling:
    """How tokens are chosen. All fields are traced: one compiled program serves every temperature and top_p.

    Attributes:
      keys: random keys [batch], one per row (`row_keys`): what a row draws is independent of the other rows.
      temperature: float32 [], which logits are divided by; 0 takes the most likely token.
      top_p: float32 [] in (0, 1]; only the fewest most likely tokens whose probabilities add up to it can be drawn.
    """

    keys: jax.Array
    temperature: jax.Array
    top_p: jax.Array


def row_keys(names: Sequence[str], seed: int) -> jax.Array:
    """A random key for each row [batch], from its name (such as a study's id) and the seed alone."""
    digests = [hashlib.sha256(f"{seed}:{name}".encode()).digest()[:8] for name in names]
    data = np.frombuffer(b"".join(digests), ">u4").astype(np.uint32).reshape(-1, 2)
    return jax.random.wrap_key_data(jnp.asarray(data), impl="threefry2x32")


def keep_top_p(logits: jax.Array, top_p: jax.Array) -> jax.Array:
    """Sets the logits of all but the most likely tokens to -inf.

    The fewest most likely tokens whose probabilities add up to `top_p` or more are kept, and those as likely as the
    last of them; as transformers' `TopPLogitsWarper`, which breaks such ties arbitrarily.

    Args:
      logits: [batch, vocab] float32.
      top_p: [] in (0, 1].
    """
    ascending = jnp.sort(logits, axis=-1)  # [B, V]
    removed = (jnp.cumsum(jax.nn.softmax(ascending, axis=-1), axis=-1) <= 1 - top_p) & (top_p < 1)  # [B, V]
    first = jnp.minimum(jnp.sum(removed, axis=-1, keepdims=True), logits.shape[-1] - 1)  # [B, 1]
    return jnp.where(logits >= jnp.take_along_axis(ascending, first, axis=-1), logits, -jnp.inf)  # [B, V]


def choose(logits: jax.Array, sampling: Sampling | None = None, step: jax.Array | int = 0) -> jax.Array:
    """The next token of each row, int32 [batch].

    Args:
      logits: [batch, vocab] float32.
      sampling: None takes the most likely token, as does temperature 0.
      step: index of the token in its row, int32 [] or [batch]; each step draws with a key of its own.
    """

    def greedy() -> jax.Array:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)

    def draw() -> jax.Array:
        assert sampling is not None
        kept = keep_top_p(logits / sampling.temperature, sampling.top_p)  # [B, V]
        keys = jax.vmap(jax.random.fold_in)(sampling.keys, jnp.broadcast_to(step, logits.shape[:1]))  # [B]
        return jax.vmap(jax.random.categorical)(keys, kept).astype(jnp.int32)

    return greedy() if sampling is None else jax.lax.cond(sampling.temperature > 0, draw, greedy)


@jax.named_scope("prefill")
def _prefill(
    params: Params, cfg: Maira2Config, tokens: jax.Array, mask: jax.Array, pixels: jax.Array | None, edits: AllEdits
) -> tuple[jax.Array, tuple[Heads, ...]]:
    """Runs all tokens of a prompt but the last.

    Returns:
      The embedding of the last token, [batch, 1, d_model], and the keys and values of the others in each layer, of
      which those from the last token's position on are not to be attended to.
    """
    features = None if pixels is None else maira2.encode_images(params, cfg, pixels, edits=edits)[0]
    embedded = maira2.embed(params, cfg, tokens, features)  # [B, T, D]
    last = maira2.last_position(mask)  # [B]
    change = maira2.edits_of(edits, "language")
    hook = None if isinstance(change, Edits) else change
    if isinstance(change, Edits) and change.mask is not None:
        hook = change.hook(change.mask & maira2.before(last, mask))
    _, _, cache = language.forward(
        params["language"], cfg.text, embedded, maira2.positions_of(mask), last, hook=hook, cache=PromptCache()
    )
    return maira2.at_positions(embedded, last[:, None]), cache.prefix


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
      params: the model's parameters; unless they are `maira2.unstacked`, each call copies the language model's layers.
      cfg: the model's configuration, static.
      tokens: [batch, positions] int32, padded on the right.
      mask: bool [batch, positions], False on padding.
      pixels: [batch, images, image_size, image_size, 3] or None.
      max_new_tokens: static.
      eos_id: static; the end token, which stops its row.
      edits: edits of the residual stream (see `Edits`); those of the language model act on generated tokens too.
      sampling: how tokens are chosen; None always takes the most likely one.

    Returns:
      New tokens int32 [batch, max_new_tokens], 0 after a row's end token, and how many a row has, int32 [batch],
      its end token counted.
    """
    params, batch = maira2.unstacked(params), len(tokens)
    last, prefix = _prefill(params, cfg, tokens, mask, pixels, edits)
    start = maira2.last_position(mask)  # [B]
    change = maira2.edits_of(edits, "language")
    hook = change.hook(jnp.ones((batch, 1), bool)) if isinstance(change, Edits) else change

    def not_done(state: tuple) -> jax.Array:
        step, _, _, done, _ = state
        return (step < max_new_tokens) & ~jnp.all(done)

    @jax.named_scope("decode")
    def decode(state: tuple) -> tuple:
        step, last, written, done, own = state
        seen = jnp.broadcast_to(jnp.arange(max_new_tokens) <= step, (batch, 1, max_new_tokens))
        x, _, cache = language.forward(
            params["language"],
            cfg.text,
            last,
            (start + step)[:, None],
            SharedMask(start, seen),
            hook=hook,
            cache=SharedCache(prefix, *own),
            slot=step,
        )  # [B, 1, D]
        logits = language.logits(params["language"], cfg.text, x[:, 0]).astype(jnp.float32)  # [B, V]
        choice = jnp.where(done, 0, choose(logits, sampling, step))  # [B]
        written = jax.lax.dynamic_update_slice(written, choice[:, None], (0, step))
        following = params["language"]["embed"][choice][:, None]  # [B, 1, D]
        return step + 1, following, written, done | (choice == eos_id), (cache.keys, cache.values)

    written = jnp.zeros((batch, max_new_tokens), jnp.int32)  # [B, N]
    cache = SharedCache.zeros(prefix, batch, max_new_tokens)
    state = (jnp.int32(0), last, written, jnp.zeros((batch,), bool), (cache.keys, cache.values))
    _, _, written, _, _ = jax.lax.while_loop(not_done, decode, state)
    ends = written == eos_id  # [B, N]
    lengths = jnp.where(ends.any(axis=1), jnp.argmax(ends, axis=1) + 1, max_new_tokens)  # [B]
    return written, lengths.astype(jnp.int32)

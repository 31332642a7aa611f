"""Generation, greedy or sampled: prefill and decode in one jitted program, with edits of the residual stream.

There are two decoding loops. This one writes one text per prompt, which is all that reports need. That of
`steer/program/decode.py` writes many texts per prompt, each with an edit of its own: there, texts share the keys and
values of their prompt, and a text that ends gives its slot to the next one. Both choose tokens by `choose`.
"""

import functools
import hashlib
from collections.abc import Mapping, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from maira_jax.model import language, maira2
from maira_jax.model.cache import Heads, PromptCache, SharedCache, SharedMask
from maira_jax.model.config import Maira2Config
from maira_jax.model.layers import Hook, Params
from maira_jax.model.maira2 import Edits

EditedTokens = Literal["prompt", "generated", "both"]
# Edits by tower; one alone is the language model's.
EditRecords = Edits | Mapping[str, Edits] | None


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
    params: Params,
    cfg: Maira2Config,
    tokens: jax.Array,
    mask: jax.Array,
    pixels: jax.Array | None,
    edits: EditRecords,
    edits_prompt: bool,
) -> tuple[jax.Array, tuple[Heads, ...]]:
    """Runs all tokens of a prompt but the last; edits of the language model act on them where `edits_prompt` is True.

    Returns:
      The embedding of the last token, [batch, 1, d_model], and the keys and values of the others in each layer, of
      which those from the last token's position on are not to be attended to.
    """
    features = None if pixels is None else maira2.encode_images(params, cfg, pixels, edits=edits)[0]
    embedded = maira2.embed(params, cfg, tokens, features)  # [B, T, D]
    last = maira2.last_position(mask)  # [B]
    hook = maira2.language_hook(edits, maira2.before(last, mask)) if edits_prompt else None
    _, _, cache = language.forward(
        params["language"], cfg.text, embedded, maira2.positions_of(mask), last, hook=hook, cache=PromptCache()
    )
    return maira2.at_positions(embedded, last[:, None]), cache.prefix


def _decode_hook(
    change: Edits | None, edited: EditedTokens | None, last_masked: jax.Array, step: jax.Array
) -> Hook | None:
    """The edit of the positions that produce a token, of which that of step 0 is the prompt's last one.

    Args:
      change: the language model's edit.
      edited: which tokens are edited.
      last_masked: bool [batch], whether the mask of the edit has the prompt's last token.
      step: int32 [].
    """
    if change is None:
        return None
    generated = jnp.full_like(last_masked, edited != "prompt")  # [B]
    return change.hook((generated | (last_masked & (step == 0) & (edited != "generated")))[:, None])


@functools.partial(jax.jit, static_argnames=("cfg", "max_new_tokens", "eos_id", "edited"))
def generate(
    params: Params,
    cfg: Maira2Config,
    tokens: jax.Array,
    mask: jax.Array,
    pixels: jax.Array | None,
    *,
    max_new_tokens: int,
    eos_id: int,
    edits: EditRecords = None,
    edited: EditedTokens | None = None,
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
      edits: edits of the residual stream (see `Edits`). Those of the vision tower and the projector act on images.
      edited: static; which tokens an edit of the language model acts on, to be named wherever there is one. "prompt":
        the prompt's tokens in the edit's mask, all where that is None. "generated": every position that produces a
        token, which are the prompt's last one and those of the generated tokens, whatever the mask. "both": those of
        "prompt" and those of "generated".
      sampling: how tokens are chosen; None always takes the most likely one.

    Returns:
      New tokens int32 [batch, max_new_tokens], 0 after a row's end token, and how many a row has, int32 [batch],
      its end token counted.

    Raises:
      ValueError: the language model is edited, and `edited` does not say where.
    """
    change: Edits | None = maira2.edits_of(edits, "language")  # type: ignore[assignment]
    if change is not None and edited is None:
        raise ValueError("the language model is edited: say which tokens with edited='prompt', 'generated' or 'both'")
    params, batch = maira2.unstacked(params), len(tokens)
    last, prefix = _prefill(params, cfg, tokens, mask, pixels, edits, edited != "generated")
    start = maira2.last_position(mask)  # [B]
    masked = mask if change is None or change.mask is None else change.mask  # [B, T]
    last_masked = jnp.take_along_axis(masked, start[:, None], axis=1)[:, 0]  # [B]

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
            hook=_decode_hook(change, edited, last_masked, step),
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

"""Key-value caches: of prompts that are read, and of rows that continue prefixes, which they may share.

A cache travels from block to block of an unstacked model (`layers.unstack`). Decoding reads what prefill leaves, in
the same layout; from token to token the rows' own slots alone change, in place.
"""

from typing import NamedTuple, Self

import jax
import jax.numpy as jnp
from flax import struct

from maira_jax.model.attention import PartialAttention, attention, attention_to, attention_to_prefix, joined


class SharedMask(NamedTuple):
    """What rows attend to that continue shared prefixes.

    Attributes:
      lengths: int32 [prefixes], the tokens of each prefix, for as many prefixes as the layer with the fewest has.
      own: bool [rows, positions, slots], which of the row's own slots each position attends to.
    """

    lengths: jax.Array
    own: jax.Array


Seen = jax.Array | SharedMask  # the lengths of rows that are read as a whole, or what is seen of a `SharedCache`
Heads = tuple[jax.Array, jax.Array]  # a layer's keys and values, [n, kv_heads, p, head_dim] each


@struct.dataclass
class PromptCache:
    """Keys and values of rows that are read as a whole, in the place that they have in a `SharedCache`.

    prefix: `Heads` of each layer that has been run, n being the number of rows.
    """

    prefix: tuple[Heads, ...] = ()

    def attend(
        self, layer: int | jax.Array, slot: int | jax.Array, q: jax.Array, k: jax.Array, v: jax.Array, seen: Seen
    ) -> tuple[jax.Array, Self]:
        """`attention` within the rows.

        Args:
          layer, slot: of no use here.
          q: [rows, positions, heads, head_dim]; k and v with kv_heads.
          seen: int32 [rows], the length of each row.

        Returns:
          [rows, positions, heads, head_dim], and the cache with this layer.
        """
        assert not isinstance(seen, SharedMask)
        heads = (k.swapaxes(1, 2), v.swapaxes(1, 2))  # as many queries are multiplied with them
        return attention(q, k, v, seen), self.replace(prefix=(*self.prefix, heads))  # type: ignore[attr-defined]


@struct.dataclass
class SharedCache:
    """Keys and values of rows that each continue a prefix in its own way; rows with one prefix are neighbours.

    A prefix is kept once for all its rows, and one product multiplies it with the queries of all of them. A layer whose
    prefix differs from row to row has a prefix for each row. Layers are tuples' entries, for an unrolled loop: reading
    one out of a stack would copy it for every token.

    Attributes:
      prefix: a layer's `Heads`, n being any number that divides the rows: row i has prefix i // (rows / n).
      keys, values: a layer's [rows, kv_heads, slots, head_dim], the row's own.
    """

    prefix: tuple[Heads, ...]
    keys: tuple[jax.Array, ...]
    values: tuple[jax.Array, ...]

    @classmethod
    def zeros(cls, prefix: tuple[Heads, ...], rows: int, slots: int) -> Self:
        """A cache without tokens after the prefix, with room for `slots` of them in each row."""
        own = [jnp.zeros((rows, k.shape[1], slots, k.shape[3]), k.dtype) for k, _ in prefix]
        return cls(prefix, tuple(own), tuple(own))

    def attend(
        self, layer: int | jax.Array, slot: int | jax.Array, q: jax.Array, k: jax.Array, v: jax.Array, seen: Seen
    ) -> tuple[jax.Array, Self]:
        """Writes keys and values to the rows' own slots, and attends: one softmax over the prefix and those slots.

        Comments give shapes: R rows of which r = R / n share each of n prefixes, T positions, K key-value heads with
        G queries each, H values per head, p tokens of prefix, S slots.

        Args:
          layer: static.
          slot: int32 [], the slot of the first position.
          q: [rows, positions, heads, head_dim]; k and v with kv_heads.
          seen: a `SharedMask`.

        Returns:
          [rows, positions, heads, head_dim], and the cache.
        """
        assert isinstance(layer, int) and isinstance(seen, SharedMask)
        rows, t, heads, d = q.shape
        prefix_k, prefix_v = self.prefix[layer]  # [n, K, p, H] each
        n, kv = prefix_k.shape[:2]
        place = (0, 0, slot, 0)
        keys = jax.lax.dynamic_update_slice(self.keys[layer], k.swapaxes(1, 2), place)  # [R, K, S, H]
        # A slot that is masked has the weight 0, which would not silence a NaN that an earlier row has left there.
        v = jnp.nan_to_num(v)
        values = jax.lax.dynamic_update_slice(self.values[layer], v.swapaxes(1, 2), place)  # [R, K, S, H]
        r, group = rows // n, heads // kv

        def by_prefix(x: jax.Array) -> jax.Array:
            """[R, K, G * T, ...] -> [n, K, r * G * T, ...]."""
            return x.reshape(n, r, *x.shape[1:]).swapaxes(1, 2).reshape(n, kv, -1, *x.shape[3:])

        def by_row(x: jax.Array) -> jax.Array:
            """The inverse of `by_prefix`."""
            return x.reshape(n, kv, r, -1, *x.shape[3:]).swapaxes(1, 2).reshape(rows, kv, -1, *x.shape[3:])

        q = q.reshape(rows, t, kv, group, d).transpose(0, 2, 3, 1, 4)  # [R, K, G, T, H]
        q = q.reshape(rows, kv, group * t, d)  # [R, K, G * T, H]
        lengths = jnp.repeat(seen.lengths, n // len(seen.lengths))  # [n]
        prefix = attention_to_prefix(by_prefix(q), prefix_k, prefix_v, lengths)  # [n, K, r * G * T, H]
        own = attention_to(q, keys, values, jnp.tile(seen.own[:, None], (1, 1, group, 1)))  # [R, K, G * T, H]
        out = joined(PartialAttention(*map(by_row, prefix)), own).astype(q.dtype)  # [R, K, G * T, H]
        out = out.reshape(rows, kv, group, t, d).transpose(0, 3, 1, 2, 4)  # [R, T, K, G, H]
        cache = self.replace(  # type: ignore[attr-defined]
            keys=(*self.keys[:layer], keys, *self.keys[layer + 1 :]),
            values=(*self.values[:layer], values, *self.values[layer + 1 :]),
        )
        return out.reshape(rows, t, heads, d), cache  # [R, T, N, H]

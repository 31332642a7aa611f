"""Key-value caches: of whole rows, and of rows that continue prefixes which they share.

A cache travels from block to block, in the layer scan's carry, so that it is updated in place.
"""

from typing import NamedTuple, Self

import jax
import jax.numpy as jnp
from flax import struct

from maira_jax.model.config import TextConfig
from maira_jax.model.layers import attention


class SharedMask(NamedTuple):
    """What rows attend to that continue shared prefixes.

    Attributes:
      prefix: bool [prefixes, p], False on the padding of a prefix, for as many prefixes as the layer with the fewest
        has.
      own: bool [rows, positions, slots], which of the row's own slots each position attends to.
    """

    prefix: jax.Array
    own: jax.Array


Mask = jax.Array | SharedMask  # an array for `attention`, or for a `KVCache`


@struct.dataclass
class KVCache:
    """Keys and values of every layer, already rotated.

    keys, values: [layers, batch, slots, kv_heads, head_dim].
    """

    keys: jax.Array
    values: jax.Array

    @classmethod
    def zeros(cls, cfg: TextConfig, batch: int, slots: int, dtype: jax.typing.DTypeLike) -> Self:
        shape = (cfg.num_hidden_layers, batch, slots, cfg.num_key_value_heads, cfg.head_dim)
        return cls(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))

    def attend(
        self, layer: int | jax.Array, slot: int | jax.Array, q: jax.Array, k: jax.Array, v: jax.Array, mask: Mask
    ) -> tuple[jax.Array, Self]:
        """Writes keys and values and attends to all slots that the mask lets through.

        Args:
          slot: int32 [], the slot of the first position.
          q: [batch, positions, heads, head_dim]; k and v with kv_heads.
          mask: bool [batch, 1, positions, slots].

        Returns:
          [batch, positions, heads, head_dim], and the cache.
        """
        assert not isinstance(mask, SharedMask)
        start = (layer, 0, slot, 0, 0)
        keys = jax.lax.dynamic_update_slice(self.keys, k[None], start)  # [L, B, S, K, H]
        values = jax.lax.dynamic_update_slice(self.values, v[None], start)  # [L, B, S, K, H]
        k = jax.lax.dynamic_index_in_dim(keys, layer, keepdims=False)  # [B, S, K, H]
        v = jax.lax.dynamic_index_in_dim(values, layer, keepdims=False)  # [B, S, K, H]
        return attention(q, k, v, mask), self.replace(keys=keys, values=values)  # type: ignore[attr-defined]


Heads = tuple[jax.Array, jax.Array]  # a layer's keys [n, kv_heads, head_dim, p] and values [n, kv_heads, p, head_dim]


def heads_first(keys: jax.Array, values: jax.Array) -> Heads:
    """[n, p, kv_heads, head_dim] each, in the order in which a prefix is multiplied with many queries."""
    return keys.transpose(0, 2, 3, 1), values.transpose(0, 2, 1, 3)


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
        own = [jnp.zeros((rows, k.shape[1], slots, k.shape[2]), k.dtype) for k, _ in prefix]
        return cls(prefix, tuple(own), tuple(own))

    def attend(
        self, layer: int | jax.Array, slot: int | jax.Array, q: jax.Array, k: jax.Array, v: jax.Array, mask: Mask
    ) -> tuple[jax.Array, Self]:
        """As `KVCache.attend`: one softmax over the prefix and the row's own slots.

        Comments give shapes: R rows of which r = R / n share each of n prefixes, T positions, K key-value heads with
        G queries each, H values per head, p tokens of prefix, S slots.

        Args:
          layer: static.
          mask: a `SharedMask`.
        """
        assert isinstance(layer, int) and isinstance(mask, SharedMask)
        rows, t, heads, d = q.shape
        prefix_k, prefix_v = self.prefix[layer]  # [n, K, H, p], [n, K, p, H]
        n, kv, _, p = prefix_k.shape
        place = (0, 0, slot, 0)
        keys = jax.lax.dynamic_update_slice(self.keys[layer], k.transpose(0, 2, 1, 3), place)  # [R, K, S, H]
        # A slot that is masked has the weight 0, which would not silence a NaN that an earlier row has left there.
        v = jnp.nan_to_num(v)
        values = jax.lax.dynamic_update_slice(self.values[layer], v.transpose(0, 2, 1, 3), place)  # [R, K, S, H]
        r, group = rows // n, heads // kv

        def by_prefix(x: jax.Array) -> jax.Array:
            """[R, K, G * T, z] -> [n, K, r * G * T, z]."""
            return x.reshape(n, r, kv, group * t, -1).swapaxes(1, 2).reshape(n, kv, r * group * t, -1)

        def by_row(x: jax.Array) -> jax.Array:
            """The inverse of `by_prefix`."""
            return x.reshape(n, kv, r, group * t, -1).swapaxes(1, 2).reshape(rows, kv, group * t, -1)

        q = q.reshape(rows, t, kv, group, d).transpose(0, 2, 3, 1, 4)  # [R, K, G, T, H]
        q = q.reshape(rows, kv, group * t, d)  # [R, K, G * T, H]
        float32 = {"preferred_element_type": jnp.float32}
        own_scores = by_prefix(jnp.einsum("rkmd,rksd->rkms", q, keys, **float32))  # [n, K, r * G * T, S]
        scores = jnp.einsum("nkmd,nkdp->nkmp", by_prefix(q), prefix_k, **float32)  # [n, K, r * G * T, p]
        scores = jnp.concatenate([scores, own_scores], axis=-1)  # [n, K, r * G * T, p + S]
        seen = jnp.repeat(mask.prefix, n // len(mask.prefix), axis=0)  # [n, p]
        seen = jnp.broadcast_to(seen[:, None, None], (*scores.shape[:3], p))  # [n, K, r * G * T, p]
        own = jnp.broadcast_to(mask.own[:, None, None], (rows, kv, group, *mask.own.shape[1:]))  # [R, K, G, T, S]
        own = by_prefix(own.reshape(rows, kv, group * t, -1))  # [n, K, r * G * T, S]
        scores = jnp.where(jnp.concatenate([seen, own], axis=-1), scores * d**-0.5, -jnp.inf)
        weights = jax.nn.softmax(scores, axis=-1).astype(q.dtype)  # [n, K, r * G * T, p + S]
        out = by_row(jnp.einsum("nkmp,nkpd->nkmd", weights[..., :p], prefix_v))  # [R, K, G * T, H]
        out = out + jnp.einsum("rkms,rksd->rkmd", by_row(weights[..., p:]), values)  # [R, K, G * T, H]
        out = out.reshape(rows, kv, group, t, d).transpose(0, 3, 1, 2, 4)  # [R, T, K, G, H]
        cache = self.replace(  # type: ignore[attr-defined]
            keys=(*self.keys[:layer], keys, *self.keys[layer + 1 :]),
            values=(*self.values[:layer], values, *self.values[layer + 1 :]),
        )
        return out.reshape(rows, t, heads, d), cache  # [R, T, N, H]

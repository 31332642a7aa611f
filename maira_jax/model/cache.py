"""Key-value caches: of whole rows, and of rows that continue prefixes which they share.

A cache travels from block to block, in the layer scan's carry, so that it is updated in place.
"""

from typing import Any, Self

import jax
import jax.numpy as jnp
from flax import struct

from maira_jax.model.config import TextConfig
from maira_jax.model.layers import attention


@struct.dataclass
class Cache:
    """Keys and values of every layer, already rotated.

    keys, values: [layers, batch, slots, kv_heads, head_dim].
    """

    keys: jax.Array
    values: jax.Array

    @classmethod
    def zeros(cls, cfg: TextConfig, batch: int, slots: int, dtype: jax.typing.DTypeLike) -> Self:
        shape = (cfg.num_hidden_layers, batch, slots, cfg.num_key_value_heads, cfg.head_dim)
        return cls(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))

    def write(self, layer: jax.Array, slot: jax.Array, keys: jax.Array, values: jax.Array) -> Self:
        """Puts [batch, positions, kv_heads, head_dim] at slots `slot` and after."""
        start = (layer, 0, slot, 0, 0)
        return self.replace(  # type: ignore[attr-defined]
            keys=jax.lax.dynamic_update_slice(self.keys, keys[None], start),
            values=jax.lax.dynamic_update_slice(self.values, values[None], start),
        )

    def read(self, layer: jax.Array) -> tuple[jax.Array, jax.Array]:
        """One layer's keys and values, [batch, slots, kv_heads, head_dim]."""
        return (
            jax.lax.dynamic_index_in_dim(self.keys, layer, keepdims=False),
            jax.lax.dynamic_index_in_dim(self.values, layer, keepdims=False),
        )

    def attend(
        self, layer: jax.Array, slot: jax.Array, q: jax.Array, k: jax.Array, v: jax.Array, mask: Any
    ) -> tuple[jax.Array, Self]:
        """Writes keys and values and attends to all slots that the mask lets through.

        Args:
          q: [batch, positions, heads, head_dim]; k and v with kv_heads.
          mask: bool [batch, 1, positions, slots].

        Returns:
          [batch, positions, heads, head_dim], and the cache.
        """
        cache = self.write(layer, slot, k, v)
        keys, values = cache.read(layer)
        return attention(q, keys, values, mask), cache


Heads = tuple[jax.Array, jax.Array]  # a layer's keys [n, kv_heads, head_dim, p] and values [n, kv_heads, p, head_dim]


def heads_first(keys: jax.Array, values: jax.Array) -> Heads:
    """[n, p, kv_heads, head_dim] each, in the order in which a prefix is multiplied with many queries."""
    return keys.transpose(0, 2, 3, 1), values.transpose(0, 2, 1, 3)


@struct.dataclass
class SharedCache:
    """Keys and values of rows that continue a prefix, each its own way; rows with one prefix stand side by side.

    A prefix is kept once for all its rows, and one product multiplies it with the queries of all of them. A layer whose
    prefix differs from row to row has a prefix for each row. Layers are tuples' entries, for an unrolled loop: reading
    one out of a stack would copy it for every token.

    prefix: a layer's `Heads`, n being any number that divides the rows: row i has prefix i // (rows / n).
    keys, values: a layer's [rows, kv_heads, slots, head_dim], what the rows have of their own.
    """

    prefix: tuple[Heads, ...]
    keys: tuple[jax.Array, ...]
    values: tuple[jax.Array, ...]

    @classmethod
    def zeros(cls, prefix: tuple[Heads, ...], rows: int, slots: int) -> Self:
        own = [jnp.zeros((rows, k.shape[1], slots, k.shape[2]), k.dtype) for k, _ in prefix]
        return cls(prefix, tuple(own), tuple(own))

    def attend(
        self, layer: int, slot: jax.Array, q: jax.Array, k: jax.Array, v: jax.Array, mask: Any
    ) -> tuple[jax.Array, Self]:
        """As `Cache.attend`: one softmax over the prefix and the row's own slots.

        Args:
          layer: static.
          mask: bool [prefixes, p] of the prefix, for as many prefixes as the layer with the fewest has; and bool
            [rows, positions, slots].
        """
        seen, own = mask
        rows, t, heads, d = q.shape
        prefix_k, prefix_v = self.prefix[layer]
        n, kv, _, p = prefix_k.shape
        place = (0, 0, slot, 0)
        keys = jax.lax.dynamic_update_slice(self.keys[layer], k.transpose(0, 2, 1, 3), place)
        # A slot that is masked has the weight 0, which would not silence a NaN that a row before has left there.
        v = jnp.nan_to_num(v)
        values = jax.lax.dynamic_update_slice(self.values[layer], v.transpose(0, 2, 1, 3), place)
        per, group = rows // n, heads // kv

        def together(x: jax.Array) -> jax.Array:
            """[rows, kv_heads, group * positions, z] -> [n, kv_heads, rows / n * group * positions, z]."""
            return x.reshape(n, per, kv, group * t, -1).swapaxes(1, 2).reshape(n, kv, per * group * t, -1)

        q = q.reshape(rows, t, kv, group, d).transpose(0, 2, 3, 1, 4).reshape(rows, kv, group * t, d)
        float32 = {"preferred_element_type": jnp.float32}
        scores = together(jnp.einsum("rkmd,rksd->rkms", q, keys, **float32))
        scores = jnp.concatenate([jnp.einsum("nkmd,nkdp->nkmp", together(q), prefix_k, **float32), scores], axis=-1)
        seen = jnp.broadcast_to(jnp.repeat(seen, n // len(seen), axis=0)[:, None, None], (*scores.shape[:3], p))
        own = jnp.broadcast_to(own[:, None, None], (rows, kv, group, *own.shape[1:]))
        own = together(own.reshape(rows, kv, group * t, -1))
        scores = jnp.where(jnp.concatenate([seen, own], axis=-1), scores * d**-0.5, -jnp.inf)
        weights = jax.nn.softmax(scores, axis=-1).astype(q.dtype)
        out = jnp.einsum("nkmp,nkpd->nkmd", weights[..., :p], prefix_v)
        mine = weights[..., p:].reshape(n, kv, per, group * t, -1).swapaxes(1, 2).reshape(rows, kv, group * t, -1)
        out = out.reshape(n, kv, per, group * t, d).swapaxes(1, 2).reshape(rows, kv, group * t, d)
        out = out + jnp.einsum("rkms,rksd->rkmd", mine, values)
        out = out.reshape(rows, kv, group, t, d).transpose(0, 3, 1, 2, 4).reshape(rows, t, heads, d)
        each = (*self.keys[:layer], keys, *self.keys[layer + 1 :])
        return (
            out,
            self.replace(  # type: ignore[attr-defined]
                keys=each, values=(*self.values[:layer], values, *self.values[layer + 1 :])
            ),
        )

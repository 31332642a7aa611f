"""The key-value cache. It travels in the layer scan's carry, so that it is updated in place."""

from typing import Self

import jax
import jax.numpy as jnp
from flax import struct

from maira_jax.model.config import TextConfig


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

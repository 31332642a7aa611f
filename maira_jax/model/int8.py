"""Weights of matrix products as integers of 8 bits with a scale for each output: half of bfloat16's bytes.

What a token costs in decoding is the time in which the weights are read. Products are of the type of their input and
the scale multiplies the result, so that a compiler can turn integers into numbers inside the product, and no other
copy of the weights is written to memory.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from flax import struct

Weights = Literal["full", "int8"]
_LARGEST = 127


@struct.dataclass
class Int8Kernel:
    """The kernel `values * scale`.

    Attributes:
      values: int8 [d_in, *d_out].
      scale: float32 [*d_out], the largest absolute weight of each output over 127.
    """

    values: jax.Array
    scale: jax.Array

    @classmethod
    def of(cls, kernel: jax.Array, axis: int) -> "Int8Kernel":
        """The nearest to `kernel`. axis: that of the inputs, which products sum over."""
        wide = kernel.astype(jnp.float32)
        scale = jnp.max(jnp.abs(wide), axis=axis) / _LARGEST
        steps = jnp.where(scale > 0, scale, 1)  # an output without weights, such as the vocabulary's padding
        return cls(jnp.round(wide / jnp.expand_dims(steps, axis)).astype(jnp.int8), scale)


def product(x: jax.Array, kernel: jax.Array | Int8Kernel) -> jax.Array:
    """x [..., d_in] times kernel [d_in, *d_out]: [..., *d_out] of the type of `x`."""
    if isinstance(kernel, Int8Kernel):
        return (jnp.tensordot(x, kernel.values.astype(x.dtype), 1) * kernel.scale).astype(x.dtype)
    return jnp.tensordot(x, kernel, 1)


def input_axis(path: tuple[str, ...]) -> int | None:
    """The axis of the inputs of a parameter that int8 weights replace; None for one that stays as it is.

    The language model's products are replaced: in decoding they are almost all that is read of the weights.
    """
    if path[0] != "language" or path[-1] not in ("kernel", "lm_head"):
        return None
    return 1 if "layers" in path else 0

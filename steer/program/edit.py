"""How directions become an edit of the model: a batch of rows, each with its own."""

import jax
import jax.numpy as jnp
from flax import struct

from maira_jax.model import maira2
from maira_jax.model.layers import Tap


@struct.dataclass
class Edits(maira2.Edits):
    """x + strength * direction + sum over c of share[c] * (target[c] - f_c(x)) * writer[c], at one site.

    f_c(x) is x . reader[c] + bias[c] where that is above threshold[c], else 0: a feature of an autoencoder, or how far
    x reaches along a direction. Every f_c reads the x before the edit. All fields are traced: adding a direction,
    clamping a feature to a value and removing a feature or a direction are one program, and so are C of them at once.

    reader, writer: float32 [batch, C, d].
    bias, threshold, target, share: float32 [batch, C]; a share of 0 leaves x alone.
    """

    reader: jax.Array | None = None
    writer: jax.Array | None = None
    bias: jax.Array | None = None
    threshold: jax.Array | None = None
    target: jax.Array | None = None
    share: jax.Array | None = None

    def tap(self, mask: jax.Array) -> Tap:
        """The edit as a function of (x [batch, positions, d], site code), on the positions in `mask`."""
        add = super().tap(mask)
        if self.reader is None or not self.reader.shape[1]:
            return add

        def edit(x: jax.Array, code: jax.Array) -> jax.Array:
            wide = x.astype(jnp.float32)
            read = jnp.einsum("bpd,bcd->bpc", wide, self.reader) + self.bias[:, None]  # type: ignore[index]
            feature = jnp.where(read > self.threshold[:, None], read, 0.0)  # type: ignore[index]
            change = self.share[:, None] * (self.target[:, None] - feature)  # type: ignore[index]
            delta = jnp.einsum("bpc,bcd->bpd", change, self.writer)
            here = (mask & (self.site == code)[:, None])[..., None]
            return add(x, code) + jnp.where(here, delta, 0).astype(x.dtype)

        return edit

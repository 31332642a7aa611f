"""What encoders with the architecture of DINOv2 share: what they give of an image.

The tower is MAIRA-2's (`maira_jax/model/vision.py`). MAIRA-2's processor stretches grey levels before they are resized;
that of a stand-alone checkpoint leaves the 8 bits of an image as they are.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from maira_jax.encoders.encoder import ImageEncoder, ImageRows
from maira_jax.errors import UserError
from maira_jax.inputs.regions import View
from maira_jax.model import vision
from maira_jax.model.attention import LONG_BLOCK
from maira_jax.model.config import VisionConfig
from maira_jax.model.layers import Params
from maira_jax.model.sites import Site


@dataclasses.dataclass(frozen=True)
class Dinov2Encoder(ImageEncoder):
    """The class token (transformers' `pooler_output`), the mean of the patches, or each; after the last LayerNorm.

    Attributes:
      cfg: the tower's sizes.
      block: number of the block after which they are taken instead, from the residual stream.
    """

    cfg: VisionConfig
    block: int | None = None
    rows: ClassVar[tuple[ImageRows, ...]] = ("cls", "mean", "patches")
    view: ClassVar[View] = "crop"

    @property
    def size(self) -> int:
        return self.cfg.image_size

    @property
    def grid(self) -> tuple[int, int]:
        side = self.cfg.image_size // self.cfg.patch_size
        return side, side

    @property
    def bytes_per_image(self) -> int:
        positions, heads = 1 + self.cfg.patches, self.cfg.num_attention_heads
        # The residual stream, queries, keys and values, and the MLP; logits and probabilities of attention.
        return (
            4
            * positions
            * (6 * self.cfg.hidden_size + 2 * self.cfg.intermediate_size + 2 * heads * min(positions, LONG_BLOCK))
        )

    def after(self, block: int | None) -> "Dinov2Encoder":
        if block is not None and block >= self.cfg.num_hidden_layers:
            raise UserError(
                f"harvest.block is {block}, but this encoder has blocks 0 to {self.cfg.num_hidden_layers - 1}: give "
                "one of them, or leave it out for the output"
            )
        return dataclasses.replace(self, block=block)

    def encode(self, params: Params, pixels: jax.Array, rows: ImageRows) -> jax.Array:
        stop = None if self.block is None else Site.post(self.block)
        x, _ = vision.forward(params, self.cfg, pixels, stop=stop)  # [B, 1 + P, D]
        if rows == "cls":
            return x[:, :1]  # [B, 1, D]
        patches = x[:, 1:]  # [B, P, D]
        return jnp.mean(patches, axis=1, keepdims=True) if rows == "mean" else patches

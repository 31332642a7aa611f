"""MedCLIP's Swin-tiny: the mean of the last tokens, projected to the embedding.

Modules have the names that transformers gave them when the checkpoint was made, from which the names of its tensors
follow. Source: https://arxiv.org/abs/2103.14030, and `transformers/models/swin/modeling_swin.py`.
"""

import dataclasses
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from maira_jax.encoders import medclip
from maira_jax.encoders.encoder import ENCODERS, ImageEncoder, ImageRows, LoadedEncoder
from maira_jax.inputs.medclip_image import to_padded_square
from maira_jax.inputs.regions import MIN_PADDED_SIDE, View
from maira_jax.model import layers
from maira_jax.model.layers import BiasFreeLinear, Params, exact_float32, linear, parameter

_EPS = 1e-5
_MLP = 4  # how many times as wide as the tokens the MLP is
_OTHER_REGION = -100.0  # added to a logit between tokens that were no neighbours before the shift


@dataclasses.dataclass(frozen=True)
class SwinConfig:
    """Sizes of a Swin transformer, whose windows divide the tokens of every stage.

    Attributes:
      size: side of the image, in pixels.
      patch: side of a patch, in pixels.
      window: side of a window, in tokens.
      width: of the first stage's tokens; each stage doubles it.
      depths: of each stage, its number of blocks.
      heads: of each stage, its number of heads.
      embedding: width of the embedding.
    """

    size: int = MIN_PADDED_SIDE
    patch: int = 4
    window: int = 7
    width: int = 96
    depths: tuple[int, ...] = (2, 2, 6, 2)
    heads: tuple[int, ...] = (3, 6, 12, 24)
    embedding: int = medclip.WIDTH


def _named(parts: dict[str, Any]) -> Any:
    """Modules under names of their own, some of which no attribute may have."""
    return nnx.Dict(parts)


def _norm(d: int, rngs: nnx.Rngs) -> nnx.LayerNorm:
    axes = {"axes": ("embed",)}
    return nnx.LayerNorm(d, epsilon=_EPS, use_fast_variance=False, rngs=rngs, scale_metadata=axes, bias_metadata=axes)


class WindowAttention(nnx.Module):
    """Attention within each window, with a learned bias for every offset between two of its tokens."""

    def __init__(self, d: int, heads: int, window: int, rngs: nnx.Rngs):
        self.heads, self.window = heads, window
        self.query, self.key, self.value = (linear(d, d, ("embed", "heads"), rngs) for _ in range(3))
        offsets = (2 * window - 1) ** 2
        normal = nnx.initializers.truncated_normal(0.02)
        self.relative_position_bias_table = parameter(normal, rngs.params(), (offsets, heads), ("offsets", "heads"))

    def __call__(self, x: jax.Array, mask: np.ndarray) -> jax.Array:
        """x: [B, W, T, D], W windows of T tokens; mask: [W, T, T], added to the logits. Returns [B, W, T, D]."""
        b, w, t, d = x.shape
        q, k, v = (each(x).reshape(b, w, t, self.heads, -1) for each in (self.query, self.key, self.value))
        logits = jnp.einsum("bwqnh,bwknh->bwnqk", q, k) * (d // self.heads) ** -0.5  # [B, W, N, T, T]
        bias = self.relative_position_bias_table[...][_offsets(self.window)]  # [T, T, N]
        weights = jax.nn.softmax(logits + (bias.transpose(2, 0, 1) + mask[:, None]), axis=-1)
        return jnp.einsum("bwnqk,bwknh->bwqnh", weights, v).reshape(b, w, t, d)


def _offsets(window: int) -> np.ndarray:
    """For two tokens of a window, the row of the table for the offset between them. [T, T]"""
    places = np.stack(np.divmod(np.arange(window**2), window))  # [2, T]
    rows, columns = places[:, :, None] - places[:, None] + window - 1  # [T, T] each
    return rows * (2 * window - 1) + columns


def _mask(side: int, window: int, shift: int) -> np.ndarray:
    """What is added to the logits of tokens that a shift has brought into one window. [W, T, T]"""
    place = np.arange(side)
    region = (place >= side - window).astype(np.float32) + (place >= side - shift) if shift else np.zeros(side)
    of = _windows((3 * region[:, None] + region)[None, :, :, None], window)[0, :, :, 0]  # [W, T]
    return np.where(of[:, None] != of[:, :, None], np.float32(_OTHER_REGION), np.float32(0))


def _windows(x: Any, window: int) -> Any:
    """An array of numpy or JAX, [B, H, H, D] -> [B, W, T, D]."""
    b, side, _, d = x.shape
    n = side // window
    parts = x.reshape(b, n, window, n, window, d).transpose(0, 1, 3, 2, 4, 5)
    return parts.reshape(b, n * n, window * window, d)


def _joined(x: jax.Array, side: int) -> jax.Array:
    """The inverse of `_windows`: [B, W, T, D] -> [B, side, side, D]."""
    b, w, t, d = x.shape
    n, window = int(w**0.5), int(t**0.5)
    return x.reshape(b, n, n, window, window, d).transpose(0, 1, 3, 2, 4, 5).reshape(b, side, side, d)


class SwinBlock(nnx.Module):
    """Attention in windows, which every second block of a stage shifts by half a window, and an MLP."""

    def __init__(self, d: int, heads: int, window: int, shift: int, rngs: nnx.Rngs):
        self.window, self.shift = window, shift
        self.layernorm_before = _norm(d, rngs)
        dense = linear(d, d, ("heads", "embed"), rngs)
        self.attention = _named({"self": WindowAttention(d, heads, window, rngs), "output": _named({"dense": dense})})
        self.layernorm_after = _norm(d, rngs)
        self.intermediate = _named({"dense": linear(d, _MLP * d, ("embed", "mlp"), rngs)})
        self.output = _named({"dense": linear(_MLP * d, d, ("mlp", "embed"), rngs)})

    def __call__(self, x: jax.Array) -> jax.Array:
        """x: [B, H, H, D]."""
        side = x.shape[1]
        shift = 0 if side <= self.window else self.shift
        moved = jnp.roll(self.layernorm_before(x), (-shift, -shift), axis=(1, 2))  # [B, H, H, D]
        attended = self.attention["self"](_windows(moved, self.window), _mask(side, self.window, shift))  # [B, W, T, D]
        attended = _joined(self.attention["output"]["dense"](attended), side)  # [B, H, H, D]
        x = x + jnp.roll(attended, (shift, shift), axis=(1, 2))
        hidden = jax.nn.gelu(self.intermediate["dense"](self.layernorm_after(x)), approximate=False)  # [B, H, H, F]
        return x + self.output["dense"](hidden)


class PatchMerging(nnx.Module):
    """Four neighbouring tokens become one of twice their width."""

    def __init__(self, d: int, rngs: nnx.Rngs):
        self.norm = _norm(4 * d, rngs)
        self.reduction = BiasFreeLinear(4 * d, (2 * d,), ("embed", "embed"), rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """x: [B, H, H, D] -> [B, H / 2, H / 2, 2 D]."""
        corners = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]  # [B, H / 2, H / 2, D] each
        return self.reduction(self.norm(jnp.concatenate(corners, axis=-1)))


class Swin(nnx.Module):
    """The parameters of the network, under transformers' names."""

    def __init__(self, cfg: SwinConfig, rngs: nnx.Rngs):
        sides = (cfg.patch, cfg.patch)
        axes = ("height", "width", "channels_in", "embed")
        projection = nnx.Conv(
            3, cfg.width, sides, sides, rngs=rngs, kernel_metadata={"axes": axes}, bias_metadata={"axes": axes[-1:]}
        )
        patches = _named({"projection": projection})
        self.embeddings = _named({"patch_embeddings": patches, "norm": _norm(cfg.width, rngs)})
        stages = {}
        for stage, (depth, heads) in enumerate(zip(cfg.depths, cfg.heads, strict=True)):
            d = cfg.width * 2**stage
            shifts = [block % 2 * (cfg.window // 2) for block in range(depth)]
            blocks = {str(i): SwinBlock(d, heads, cfg.window, shift, rngs) for i, shift in enumerate(shifts)}
            last = stage + 1 == len(cfg.depths)
            merging = {} if last else {"downsample": PatchMerging(d, rngs)}
            stages[str(stage)] = _named({"blocks": _named(blocks), **merging})
        self.encoder = _named({"layers": _named(stages)})
        self.layernorm = _norm(d, rngs)

    def __call__(self, pixels: jax.Array) -> jax.Array:
        """pixels: [B, size, size, 3] -> [B, D], the mean of the last tokens."""
        x = self.embeddings["norm"](self.embeddings["patch_embeddings"]["projection"](pixels))  # [B, H, H, D]
        for stage in self.encoder["layers"].values():
            for block in stage["blocks"].values():
                x = block(x)  # [B, H, H, D]
            x = stage["downsample"](x) if "downsample" in stage else x  # [B, H / 2, H / 2, 2 D]
        return jnp.mean(self.layernorm(x), axis=(1, 2))  # [B, D]


class MedClipSwinTower(nnx.Module):
    """The image tower, as it is called in MedCLIP's checkpoint."""

    def __init__(self, cfg: SwinConfig, key: jax.Array):
        rngs = nnx.Rngs(key)
        self.model = Swin(cfg, rngs)
        d = cfg.width * 2 ** (len(cfg.depths) - 1)
        self.projection_head = BiasFreeLinear(d, (cfg.embedding,), ("embed", "embedding"), rngs)


@exact_float32
@jax.named_scope("swin")
def forward(params: Params, cfg: SwinConfig, pixels: jax.Array) -> jax.Array:
    """Embeddings before they are divided by their length. pixels: [B, size, size, 3] -> [B, embedding]."""
    tower = layers.bind(MedClipSwinTower, cfg, params)
    return tower.projection_head(tower.model(pixels))


@ENCODERS.register("medclip_swin")
@dataclasses.dataclass(frozen=True)
class MedClipSwin(ImageEncoder):
    """MedCLIP's transformer: an embedding of 512 of an image of 224 pixels."""

    cfg: SwinConfig = SwinConfig()
    rows: ClassVar[tuple[ImageRows, ...]] = ("embedding",)
    view: ClassVar[View] = "pad"
    square = staticmethod(to_padded_square)

    @property
    def size(self) -> int:
        return self.cfg.size

    @property
    def grid(self) -> tuple[int, int]:
        side = self.size // self.cfg.patch // 2 ** (len(self.cfg.depths) - 1)
        return side, side

    @property
    def bytes_per_image(self) -> int:
        # The first stage's residual stream, queries, keys, values and MLP; logits and probabilities of attention.
        values = 13 * self.cfg.width + 2 * self.cfg.heads[0] * self.cfg.window**2  # of each token
        return 4 * (self.size // self.cfg.patch) ** 2 * values

    @classmethod
    def load(cls, weights: str, model_dir: Path, mesh: tuple[int, ...], seed: int) -> LoadedEncoder:
        encoder = cls()
        return medclip.load(encoder, MedClipSwinTower, encoder.cfg, weights, mesh, seed)

    def encode(self, params: Params, pixels: jax.Array, rows: ImageRows) -> jax.Array:
        return medclip.unit_length(forward(params, self.cfg, pixels))

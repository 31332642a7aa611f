"""MedCLIP's ResNet-50: torchvision's, whose last layer gives the embedding.

Modules have torchvision's names, from which the names of the checkpoint's tensors follow. The stride of a bottleneck is
that of its 3 x 3 convolution (https://github.com/pytorch/vision, `torchvision/models/resnet.py`).
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from maira_jax.encoders import medclip
from maira_jax.encoders.encoder import ENCODERS, ImageEncoder, ImageRows, LoadedEncoder
from maira_jax.inputs.medclip_image import to_padded_square
from maira_jax.inputs.regions import MIN_PADDED_SIDE, View
from maira_jax.model import layers
from maira_jax.model.layers import Params, exact_float32, parameter

_EPS = 1e-5
_EXPANSION = 4  # of a bottleneck: its output is this many times as wide as its 3 x 3 convolution
_CONV_AXES = ("height", "width", "channels_in", "channels_out")


@dataclasses.dataclass(frozen=True)
class ResNetConfig:
    """Sizes of a ResNet of bottlenecks.

    Attributes:
      size: side of the image, in pixels.
      stem: channels of the first convolution.
      widths: of each stage, the channels of its 3 x 3 convolutions.
      depths: of each stage, its number of blocks.
      embedding: width of the embedding.
    """

    size: int = MIN_PADDED_SIDE
    stem: int = 64
    widths: tuple[int, ...] = (64, 128, 256, 512)
    depths: tuple[int, ...] = (3, 4, 6, 3)
    embedding: int = medclip.WIDTH


def _conv(d_in: int, d_out: int, kernel: int, stride: int, rngs: nnx.Rngs) -> nnx.Conv:
    return nnx.Conv(
        d_in,
        d_out,
        (kernel, kernel),
        strides=stride,
        padding=kernel // 2,
        use_bias=False,
        kernel_init=nnx.initializers.variance_scaling(2.0, "fan_out", "normal"),  # torchvision's
        rngs=rngs,
        kernel_metadata={"axes": _CONV_AXES},
    )


class StoredBatchNorm(nnx.Module):
    """Batch norm with the mean and variance that training has stored."""

    def __init__(self, d: int):
        zeros, ones, axes = nnx.initializers.zeros, nnx.initializers.ones, ("channels_out",)
        self.scale = parameter(ones, None, (d,), axes)
        self.bias = parameter(zeros, None, (d,), axes)
        self.mean = parameter(zeros, None, (d,), axes)
        self.var = parameter(ones, None, (d,), axes)

    def __call__(self, x: jax.Array) -> jax.Array:
        """x: [..., d]."""
        scale = self.scale[...] * jax.lax.rsqrt(self.var[...] + _EPS)  # [d]
        return x * scale + (self.bias[...] - self.mean[...] * scale)


class Bottleneck(nnx.Module):
    """1 x 1, 3 x 3 and 1 x 1 convolutions with batch norm, added to the input, which is projected to another shape."""

    def __init__(self, d_in: int, width: int, stride: int, rngs: nnx.Rngs):
        d_out = width * _EXPANSION
        self.conv1, self.bn1 = _conv(d_in, width, 1, 1, rngs), StoredBatchNorm(width)
        self.conv2, self.bn2 = _conv(width, width, 3, stride, rngs), StoredBatchNorm(width)
        self.conv3, self.bn3 = _conv(width, d_out, 1, 1, rngs), StoredBatchNorm(d_out)
        if d_in != d_out or stride != 1:
            self.downsample = nnx.Dict({"0": _conv(d_in, d_out, 1, stride, rngs), "1": StoredBatchNorm(d_out)})

    def __call__(self, x: jax.Array) -> jax.Array:
        """x: [B, H, W, d_in] -> [B, H / stride, W / stride, d_out]."""
        out = jax.nn.relu(self.bn1(self.conv1(x)))  # [B, H, W, width]
        out = jax.nn.relu(self.bn2(self.conv2(out)))  # [B, H / stride, W / stride, width]
        out = self.bn3(self.conv3(out))  # [B, H / stride, W / stride, d_out]
        if hasattr(self, "downsample"):
            x = self.downsample["1"](self.downsample["0"](x))
        return jax.nn.relu(out + x)


class ResNet(nnx.Module):
    """The parameters of the network, under torchvision's names."""

    def __init__(self, cfg: ResNetConfig, key: jax.Array):
        rngs = nnx.Rngs(key)
        self.conv1, self.bn1 = _conv(3, cfg.stem, 7, 2, rngs), StoredBatchNorm(cfg.stem)
        d_in = cfg.stem
        for stage, (width, depth) in enumerate(zip(cfg.widths, cfg.depths, strict=True)):
            blocks = {}
            for block in range(depth):
                blocks[str(block)] = Bottleneck(d_in, width, 2 if stage and not block else 1, rngs)
                d_in = width * _EXPANSION
            setattr(self, f"layer{stage + 1}", nnx.Dict(blocks))
        self.fc = nnx.Linear(d_in, cfg.embedding, use_bias=False, rngs=rngs, kernel_metadata={"axes": ("d", "embed")})

    def stages(self) -> Sequence[Sequence[Bottleneck]]:
        """The blocks of each stage."""
        names = [name for name in vars(self) if name.startswith("layer")]
        return [list(getattr(self, name).values()) for name in sorted(names)]

    def __call__(self, pixels: jax.Array) -> jax.Array:
        """pixels: [B, size, size, 3] -> [B, embedding]."""
        x = jax.nn.relu(self.bn1(self.conv1(pixels)))  # [B, size / 2, size / 2, stem]
        x = nnx.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))  # [B, size / 4, size / 4, stem]
        for blocks in self.stages():
            for block in blocks:
                x = block(x)  # [B, H, W, D], halved by each stage but the first
        return self.fc(jnp.mean(x, axis=(1, 2)))  # [B, embedding]


class MedClipResNet(nnx.Module):
    """The image tower, as it is called in MedCLIP's checkpoint."""

    def __init__(self, cfg: ResNetConfig, key: jax.Array):
        self.model = ResNet(cfg, key)


@exact_float32
@jax.named_scope("resnet")
def forward(params: Params, cfg: ResNetConfig, pixels: jax.Array) -> jax.Array:
    """Embeddings before they are divided by their length. pixels: [B, size, size, 3] -> [B, embedding]."""
    return layers.bind(MedClipResNet, cfg, params).model(pixels)


@ENCODERS.register("medclip_resnet50")
@dataclasses.dataclass(frozen=True)
class MedClipResNet50(ImageEncoder):
    """The encoder of MedSAE (arXiv 2510.26411): an embedding of 512 of an image of 224 pixels."""

    cfg: ResNetConfig = ResNetConfig()
    rows: ClassVar[tuple[ImageRows, ...]] = ("embedding",)
    view: ClassVar[View] = "pad"
    square = staticmethod(to_padded_square)

    @property
    def size(self) -> int:
        return self.cfg.size

    @property
    def grid(self) -> tuple[int, int]:
        side = self.size // 2 ** (len(self.cfg.depths) + 1)
        return side, side

    @property
    def bytes_per_image(self) -> int:
        # The first convolution's output, the largest, with its copies.
        return 5 * (self.size // 2) ** 2 * self.cfg.stem * 4

    @classmethod
    def load(cls, weights: str, model_dir: Path, mesh: tuple[int, ...], seed: int) -> LoadedEncoder:
        encoder = cls()
        return medclip.load(encoder, MedClipResNet, encoder.cfg, weights, mesh, seed)

    def encode(self, params: Params, pixels: jax.Array, rows: ImageRows) -> jax.Array:
        return medclip.unit_length(forward(params, self.cfg, pixels))

"""Rad-DINO, the vision tower that MAIRA-2's was trained from, out of its stand-alone checkpoint.

Source: https://huggingface.co/microsoft/rad-dino, a `Dinov2Model` of transformers.
"""

import dataclasses
from pathlib import Path

import jax

from maira_jax.checkpoint.layout import dinov2_entries
from maira_jax.checkpoint.tensor_source import TensorSource
from maira_jax.encoders.dinov2 import Dinov2Encoder
from maira_jax.encoders.encoder import ENCODERS, RANDOM, LoadedEncoder, assembled, drawn, replicated
from maira_jax.errors import UserError
from maira_jax.inputs.image import ImageConfig, to_unstretched_square
from maira_jax.model import layers
from maira_jax.model.config import VisionConfig, published
from maira_jax.model.vision import VisionTower
from maira_jax.run import files

_CONFIGURATION = ("config.json", "preprocessor_config.json")
# What its `preprocessor_config.json` says, for random weights.
_MEAN, _STD = 0.5307, 0.2583


@ENCODERS.register("rad_dino")
@dataclasses.dataclass(frozen=True)
class RadDino(Dinov2Encoder):
    """A folder of safetensors with `config.json` and `preprocessor_config.json`; at random, of the published sizes."""

    square = staticmethod(to_unstretched_square)

    @classmethod
    def load(cls, weights: str, model_dir: Path, mesh: tuple[int, ...], seed: int) -> LoadedEncoder:
        if weights == RANDOM:
            cfg = published().vision
            levels = ImageConfig(cfg.image_size, (_MEAN,) * 3, (_STD,) * 3).levels()
            params = drawn(VisionTower, cfg, jax.random.key(seed))
            return LoadedEncoder(cls(cfg), replicated(params, mesh), levels, f"{RANDOM} {seed}")
        folder = Path(weights).expanduser()
        if not weights or not folder.is_dir():
            raise UserError(
                f"harvest.weights is {weights!r}, which is no folder: give that of Rad-DINO's checkpoint, or {RANDOM!r}"
            )
        cfg, images = VisionConfig.from_dir(folder), ImageConfig.from_dir(folder)
        if images.size != cfg.image_size:
            raise UserError(
                f"{folder}: images are resized to {images.size} pixels, but the encoder takes {cfg.image_size}: "
                "restore preprocessor_config.json"
            )
        source = TensorSource(folder, dinov2_entries(cfg), "DINOv2")
        tensors = ((entry, tensor) for shard in source.parts for entry, tensor in source.read(shard))
        params = assembled(layers.parameter_specs(VisionTower, cfg), tensors, folder)
        digests = source.digests | {name: files.sha256(folder / name) for name in _CONFIGURATION}
        return LoadedEncoder(cls(cfg), replicated(params, mesh), images.levels(), files.digest(digests))

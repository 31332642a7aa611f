"""MAIRA-2's own vision tower, out of the converted model of the run."""

import dataclasses
from pathlib import Path
from typing import ClassVar

import jax

from maira_jax.checkpoint import store
from maira_jax.encoders.dinov2 import Dinov2Encoder
from maira_jax.encoders.encoder import ENCODERS, RANDOM, LoadedEncoder, drawn, replicated
from maira_jax.errors import UserError
from maira_jax.inputs.image import ImageConfig, to_grey_square
from maira_jax.model.config import Maira2Config
from maira_jax.model.sites import Site
from maira_jax.model.vision import VisionTower
from maira_jax.run import files
from maira_jax.run.stages.stage import MANIFEST


@ENCODERS.register("maira2_vision")
@dataclasses.dataclass(frozen=True)
class Maira2Vision(Dinov2Encoder):
    """The tower of the model in WORKDIR/model, in the type that it was converted to; nothing else of it is loaded."""

    of_model: ClassVar[bool] = True
    square = staticmethod(to_grey_square)

    @classmethod
    def load(cls, weights: str, model_dir: Path, mesh: tuple[int, ...], seed: int) -> LoadedEncoder:
        model, levels = Maira2Config.from_dir(model_dir), ImageConfig.from_dir(model_dir).levels()
        encoder = cls(model.vision)
        if weights == RANDOM:
            params = drawn(VisionTower, model.vision, jax.random.key(seed))
            return LoadedEncoder(encoder, replicated(params, mesh), levels, f"{RANDOM} {seed}")
        if weights:
            raise UserError(
                f"harvest.weights is {weights!r}, but maira2_vision has those of {model_dir}: leave it empty, give "
                f"{RANDOM!r}, or choose rad_dino for a checkpoint of the tower alone"
            )
        params, _ = store.load(model_dir, mesh, rows=None, stop=Site.parse("vision.output", model))
        digest = files.digest(files.read_json(model_dir / MANIFEST)["counts"])
        return LoadedEncoder(encoder, params["vision"], levels, digest)

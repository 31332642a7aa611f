"""What an image encoder is to the stages that run it, and the registry of encoders."""

import abc
import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar, Literal, TypeAlias, get_args

import jax
import numpy as np
from flax import traverse_util
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from maira_jax.checkpoint.layout import Entry
from maira_jax.errors import UserError
from maira_jax.inputs.regions import View
from maira_jax.model import layers, sharding
from maira_jax.model.layers import ParameterPath, ParameterSpec, Params
from maira_jax.run.registry import Registry
from maira_jax.studies.study import ImageSource

ImageRows: TypeAlias = Literal["embedding", "cls", "mean", "patches"]
"""What is given of an image: the encoder's embedding, its class token, the mean of its patches, or each of them."""
IMAGE_ROWS: tuple[ImageRows, ...] = get_args(ImageRows)
RANDOM = "random"


class ImageEncoder(abc.ABC):
    """An encoder's architecture with its sizes. It compares by value, so that it can be static in a jitted program.

    Attributes:
      rows: what it gives of an image; the first where nothing else is asked for.
      view: how an image is made square.
      of_model: whether it is a part of the converted MAIRA-2.
    """

    rows: ClassVar[tuple[ImageRows, ...]]
    view: ClassVar[View]
    of_model: ClassVar[bool] = False

    @property
    @abc.abstractmethod
    def size(self) -> int:
        """Side of the square that is encoded, in pixels."""

    @property
    @abc.abstractmethod
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""

    @property
    @abc.abstractmethod
    def bytes_per_image(self) -> int:
        """Memory that a pass takes for each image, about."""

    @staticmethod
    @abc.abstractmethod
    def square(image: ImageSource, size: int) -> np.ndarray:
        """An image before normalisation: uint8 [size, size]."""

    @classmethod
    @abc.abstractmethod
    def load(cls, weights: str, model_dir: Path, mesh: tuple[int, ...], seed: int) -> "LoadedEncoder":
        """The encoder with its parameters.

        Args:
          weights: file or folder of its checkpoint; "random": drawn from the seed.
          model_dir: folder of the converted MAIRA-2, for its own tower.
          mesh: devices along `data` and `model`; () for all of this host along `data`, or as few along `model` as a
            converted model needs.
          seed: of random weights.

        Raises:
          UserError: the checkpoint is missing, damaged or another model's.
        """

    @abc.abstractmethod
    def encode(self, params: Params, pixels: jax.Array, rows: ImageRows) -> jax.Array:
        """Rows of images.

        Args:
          pixels: float32 [batch, size, size, 3], normalised.
          rows: one of `rows`.

        Returns:
          [batch, rows of an image, width].
        """

    def after(self, block: int | None) -> "ImageEncoder":
        """This encoder, whose rows are taken after the block number `block`; None: those of its output.

        Raises:
          UserError: the encoder has no such block.
        """
        if block is None:
            return self
        raise UserError(
            f"harvest.block is {block}, but this encoder gives its output alone: leave it out, or choose rad_dino or "
            "maira2_vision"
        )

    def chosen_rows(self, rows: str | None) -> ImageRows:
        """What is given of an image where `rows` are asked for; None for the encoder's own choice.

        Raises:
          UserError: the encoder does not have them.
        """
        for own in self.rows:
            if rows in (own, None):
                return own
        raise UserError(
            f"harvest.rows is {rows!r}, which this encoder does not have: choose from {', '.join(self.rows)}"
        )


@dataclasses.dataclass(frozen=True)
class LoadedEncoder:
    """An encoder that can run.

    Attributes:
      encoder: its architecture.
      params: its parameters, on the mesh.
      levels: the pixel value of each grey level. float32 [256, 3]
      weights: digest of the checkpoint, or "random SEED".
    """

    encoder: ImageEncoder
    params: Params
    levels: np.ndarray
    weights: str


ENCODERS: Registry[type[ImageEncoder]] = Registry("harvest.encoder")


# As one program: a module's initialisers one by one are slower.
drawn = jax.jit(layers.init, static_argnums=(0, 1))


def assembled(
    specs: dict[ParameterPath, ParameterSpec], tensors: Iterable[tuple[Entry, np.ndarray]], origin: Path
) -> Params:
    """Parameters, float32 in this host's memory, of the tensors of a whole checkpoint.

    Raises:
      UserError: a tensor holds a value that is not finite.
    """
    params = {path: np.empty(spec.shape, np.float32) for path, spec in specs.items()}
    for entry, tensor in tensors:
        if not np.isfinite(tensor).all():
            raise UserError(f"{origin} holds a value of {entry.name} that is not finite: download it again")
        params[entry.path][entry.index] = entry.to_flax(tensor, np.dtype(np.float32))
    return traverse_util.unflatten_dict(params)


def replicated(params: Params, mesh: tuple[int, ...]) -> Params:
    """The parameters on every device of a mesh of this host; (): all of its devices."""
    data, model = mesh or (jax.local_device_count(), 1)
    return jax.device_put(params, NamedSharding(sharding.make_mesh((data, model)), P()))

"""Runs an image encoder over the frontal images of studies."""

import dataclasses
import functools
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Self

import jax
import ml_collections
import numpy as np

from maira_jax.encoders import ENCODERS
from maira_jax.encoders.encoder import ImageEncoder, ImageRows, LoadedEncoder
from maira_jax.errors import UserError
from maira_jax.inputs.batches import fill_up
from maira_jax.inputs.image_readers import ImageReaders
from maira_jax.inputs.readable import load_readable
from maira_jax.model import sharding
from maira_jax.model.layers import Params
from maira_jax.run import processes
from maira_jax.run.config import RunSection
from maira_jax.run.performance import profile
from maira_jax.run.performance.device_queue import DeviceQueue
from maira_jax.run.performance.profile import StepTrace
from maira_jax.studies.study import ImageSource, Study
from sae.activations.batch_size import automatic_image_batch
from sae.activations.config import HarvestSection

# A TPU pads the three float32 channels of a pixel to 128, in four copies by what its compiler asks for.
_PADDED_PIXEL_BYTES = 4 * 128 * 4


class ImageBatch(NamedTuple):
    """Images that go through the encoder together: those of neighbouring studies, by number."""

    studies: tuple[int, ...]


class ImageHarvester:
    """Gives the rows of the frontal images of studies.

    Args:
      loaded: the encoder.
      studies: the studies, each with a frontal image.
      harvest: the section of the configuration.
      batch_size: images in a pass; it is raised to what the mesh divides. None: as many as fit.

    Attributes:
      studies: the studies.
      rows: what is given of an image.
      rows_per_image: number of rows of an image.
      d_model: width of a row.
      starts: first row of each study, and the number of all rows. int64 [studies + 1]
      source: where the rows come from, as plain values.
      batch_size: images in a pass.
      queue: how busy the device is.

    Raises:
      UserError: the encoder does not have the rows that are asked for.
    """

    def __init__(
        self, loaded: LoadedEncoder, studies: Sequence[Study], harvest: HarvestSection, batch_size: int | None
    ):
        encoder, self._levels = loaded.encoder, loaded.levels
        self.studies, self.rows = studies, encoder.chosen_rows(harvest.rows)
        self._mesh = sharding.mesh_of(loaded.params)
        leaves = jax.tree.leaves(loaded.params)
        held = sum(leaf.addressable_shards[0].data.nbytes for leaf in leaves)  # by one device
        image_bytes = encoder.bytes_per_image
        if self._mesh.devices.flat[0].platform == "tpu":
            image_bytes += _PADDED_PIXEL_BYTES * encoder.size**2
        fitting = automatic_image_batch(image_bytes, held, sharding.device_memory(), self._mesh.shape["data"])
        self.batch_size: int = processes.broadcast(sharding.rows_on(self._mesh, batch_size or fitting))
        self._encode = functools.partial(encoded_rows, loaded.params, encoder, self.rows, harvest.dtype)
        self.rows_per_image, self.d_model = _row_shape(loaded, self.rows)
        self.starts = np.arange(len(studies) + 1, dtype=np.int64) * self.rows_per_image
        self.source = {
            "encoder": harvest.encoder,
            "weights": loaded.weights,
            "rows": self.rows,
            "block": harvest.block,
            "grid": list(encoder.grid) if self.rows == "patches" else None,
            "view": encoder.view,
        }
        self.queue: DeviceQueue[ImageBatch, np.ndarray] = DeviceQueue()
        self._readers = ImageReaders(encoder.size, harvest.readers, encoder.square)

    @classmethod
    def open(cls, config: ml_collections.ConfigDict, workdir: Path, batch_size: int | None = None) -> Self:
        """A harvester of `config.studies` with `config.harvest.encoder`; studies without a frontal image are left out.

        Raises:
          UserError: a field is out of range, a checkpoint or a study cannot be read, or no study has an image.
        """
        harvest, run = HarvestSection.of(config), RunSection.of(config)
        # The encoder comes first: to decode every image once takes hours of a large data set.
        loaded = ENCODERS.get(harvest.encoder).load(harvest.weights, Path(workdir) / "model", run.mesh, run.seed)
        loaded = dataclasses.replace(loaded, encoder=loaded.encoder.after(harvest.block))
        loaded.encoder.chosen_rows(harvest.rows)
        found = load_readable(config.studies, Path(workdir), harvest.readers)
        studies = [study for study in found if study.frontal is not None]
        if not studies:
            raise UserError("no study has a frontal image: give other studies")
        return cls(loaded, studies, harvest, batch_size or harvest.batch_size)

    def close(self) -> None:
        """Ends the processes that read images."""
        self._readers.close()

    def batches(self, without: Collection[int] = ()) -> Iterator[ImageBatch]:
        """The batches of all studies but some, which depend on their numbers and the batch size alone."""
        computed = [number for number in range(len(self.studies)) if number not in without]
        for start in range(0, len(computed), self.batch_size):
            yield ImageBatch(tuple(computed[start : start + self.batch_size]))

    def read(
        self, batches: Iterable[ImageBatch], trace: StepTrace = profile.OFF
    ) -> Iterator[tuple[ImageBatch, list[np.ndarray]]]:
        """Yields each batch with its images' rows, [rows of an image, d_model] each, as stored.

        Raises:
          UserError: an image cannot be read.
        """
        for batch, rows in self.queue.run(trace.over(self._inputs(batches)), self._run):
            yield batch, list(rows[: len(batch.studies)])

    def _inputs(self, batches: Iterable[ImageBatch]) -> Iterator[tuple[ImageBatch, np.ndarray]]:
        """Each batch with its squares, uint8 [batch, size, size]; the last image is repeated to fill it up."""
        for batch, squares in self._readers.ahead((batch, self._images(batch)) for batch in batches):
            yield batch, np.stack(fill_up(squares, self.batch_size))

    def _images(self, batch: ImageBatch) -> list[ImageSource]:
        images = [self.studies[number].frontal for number in batch.studies]
        return [image for image in images if image is not None]  # all of them

    def _run(self, squares: np.ndarray) -> jax.Array:
        with jax.set_mesh(self._mesh):
            return self._encode(self._levels, sharding.place_rows(self._mesh, squares))


@functools.partial(jax.jit, static_argnames=("encoder", "rows", "dtype"))
def encoded_rows(
    params: Params, encoder: ImageEncoder, rows: ImageRows, dtype: str, levels: jax.Array, squares: jax.Array
) -> jax.Array:
    """Rows of a batch of images.

    Args:
      levels: the pixel value of each grey level. float32 [256, 3]
      squares: grey levels. uint8 [batch, size, size]

    Returns:
      [batch, rows of an image, d_model] in the dtype.
    """
    return encoder.encode(params, levels[squares], rows).astype(dtype)


def _row_shape(loaded: LoadedEncoder, rows: ImageRows) -> tuple[int, int]:
    """Number of rows of an image, and their width."""
    size = loaded.encoder.size
    pixels = jax.ShapeDtypeStruct((1, size, size, 3), np.float32)
    shape = jax.eval_shape(lambda params, pixels: loaded.encoder.encode(params, pixels, rows), loaded.params, pixels)
    return shape.shape[1], shape.shape[2]

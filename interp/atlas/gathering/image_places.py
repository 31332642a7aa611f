"""Where the images of studies, and their patches, are among the rows of an activation store."""

import math
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from interp.exemplars.corpus import is_of_images
from maira_jax.inputs.regions import View, patch_boxes
from maira_jax.inputs.tokens import Kind, Tokenizer
from sae.activations.store import ActivationStore

_STUDY = 1 << 32  # more than there are positions in a sequence


class ImagePlaces:
    """Finds the image, and the patch, that a row of a store is from.

    Attributes:
      grid: rows and columns of patches; None where the store holds no row per patch.
      view: how an image becomes a square.

    Args:
      workdir: the run directory.
      store: its activations.
    """

    def __init__(self, workdir: Path, store: ActivationStore):
        self.view: View = "crop"
        self.grid: tuple[int, int] | None = None
        self._lasts: np.ndarray | None = None  # study * _STUDY + position of each image's last token, sorted; int64
        source = store.source
        if is_of_images(source):
            self.view = source.get("view", self.view)
            self.grid = tuple(source["grid"]) if source.get("grid") else None
            return
        of_images = pc.field("kind").isin([Kind.IMAGE, Kind.IMAGE_LAST])
        tokens = pq.read_table(store.directory / "tokens.parquet", filters=of_images)
        study, position, kind = (tokens[name].to_numpy() for name in ("study", "position", "kind"))
        last = kind == Kind.IMAGE_LAST
        self._lasts = np.sort(study[last].astype(np.int64) * _STUDY + position[last])
        if not last.all():
            self._per_image = Tokenizer.from_dir(workdir / "model").patches_per_image
            self.grid = (math.isqrt(self._per_image),) * 2

    def count(self, study: int) -> int | None:
        """How many images of a study have rows; None where an image is a whole study."""
        if self._lasts is None:
            return None
        low, high = np.searchsorted(self._lasts, [study * _STUDY, (study + 1) * _STUDY])
        return int(high - low)

    def numbers(self, study: np.ndarray, position: np.ndarray) -> np.ndarray:
        """The number of the image, from 0, that the tokens of studies at these positions are of. int32 [n]"""
        if self._lasts is None:
            return np.zeros(len(study), np.int32)
        begin = study.astype(np.int64) * _STUDY
        return (np.searchsorted(self._lasts, begin + position) - np.searchsorted(self._lasts, begin)).astype(np.int32)

    def first_patch(self, study: int, position: int) -> int:
        """The number of the patch at a position of a study's sequence, in its image."""
        if self._lasts is None:
            return 0
        last = int(self._lasts[np.searchsorted(self._lasts, study * _STUDY + position)]) % _STUDY
        return position - (last - self._per_image + 1)

    def cell(self, width: int, height: int) -> list[float] | None:
        """The first patch of an image of this size: x, y, width and height as fractions of it; None without patches."""
        if self.grid is None:
            return None
        return [float(f"{part:.5g}") for part in patch_boxes(width, height, self.grid, self.view)[0]]

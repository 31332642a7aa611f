"""Where the images of studies, and their patches, are among the rows of an activation store."""

import math
from pathlib import Path

import numpy as np

from interp.exemplars.corpus import is_of_images
from maira_jax.inputs.regions import View, patch_boxes
from maira_jax.inputs.tokens import Kind, Tokenizer
from sae.activations.store import ActivationStore
from sae.activations.token_rows import TokenRows

_STUDY = 1 << 32  # more than there are positions in a sequence


class ImagePlaces:
    """Finds the image, and the patch, that a row of a store is from.

    Attributes:
      grid: rows and columns of patches; None where the store holds no row per patch.
      view: how an image becomes a square.

    Args:
      workdir: the run directory.
      store: its activations.
      tokens: the token that each of its rows is.
    """

    def __init__(self, workdir: Path, store: ActivationStore, tokens: TokenRows):
        self.view: View = "crop"
        self.grid: tuple[int, int] | None = None
        self._lasts: np.ndarray | None = None  # study * _STUDY + position of each image's last token, sorted; int64
        source = store.source
        if is_of_images(source):
            self.view = source.get("view", self.view)
            self.grid = tuple(source["grid"]) if source.get("grid") else None
            return
        last = tokens.kind == Kind.IMAGE_LAST
        self._lasts = tokens.study[last].astype(np.int64) * _STUDY + tokens.position[last]
        if (tokens.kind == Kind.IMAGE).any():
            self._per_image = Tokenizer.from_dir(workdir / "model").patches_per_image
            self.grid = (math.isqrt(self._per_image),) * 2

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

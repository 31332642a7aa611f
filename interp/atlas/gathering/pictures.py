"""The images of studies as the atlas has them: small files in a folder of their own."""

import dataclasses
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import ml_collections
from PIL import Image

from interp.atlas.gathering.image_places import ImagePlaces
from interp.explainers.images import StudyImages
from maira_jax.errors import UserError
from maira_jax.run.progress import progress
from sae.activations.store import ActivationStore

FOLDER = "images"
MAX_PICTURES = 4000  # about 60 MB
_SIDE, _QUALITY = 320, 80  # longest side in pixels, and JPEG's quality


@dataclasses.dataclass(frozen=True)
class Picture:
    """An image that the atlas has.

    Attributes:
      number: of its file.
      cell: its upper left patch, see `ImagePlaces.cell`.
    """

    number: int
    cell: list[float] | None


class PictureWriter:
    """Writes images of studies, without anything that their files say about a patient.

    Attributes:
      reason: why images are not at hand; "" where they are.

    Args:
      config: with the section `studies`, which the activations were harvested from.
      store: the activations.
      places: where patches are.
      atlas: the atlas's folder.
    """

    def __init__(self, config: ml_collections.ConfigDict, store: ActivationStore, places: ImagePlaces, atlas: Path):
        self.reason = ""
        self._images = StudyImages(config.studies, store.directory)
        self._needed = "encoder" in store.source
        self._places, self._folder = places, atlas / FOLDER

    def count(self, study_id: str) -> int:
        """How many images a study has; 0 where images are not at hand.

        Raises:
          UserError: as `write`.
        """
        if self.reason:
            return 0
        try:
            return len(self._images.of(study_id))
        except UserError as error:
            self._missing(error)
            return 0

    def write(self, wanted: Sequence[tuple[str, int]]) -> dict[tuple[str, int], Picture]:
        """Writes the first images of `wanted`, as many as the atlas may have.

        Args:
          wanted: study id and number of each image, each once.

        Returns:
          What was written; those of other runs than an image encoder's may be missing, and `reason` says why.

        Raises:
          UserError: the encoder's study is not among `config.studies`, or its image cannot be read.
        """
        wanted = wanted[:MAX_PICTURES]
        if not wanted:
            return {}
        self.count(wanted[0][0])  # which loads the studies, before threads do
        if self.reason:
            return {}
        self._folder.mkdir(exist_ok=True)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            found = pool.map(self._picture, range(len(wanted)), wanted)
            written = list(progress(found, total=len(wanted), unit="image", desc="atlas: images"))
        return {at: picture for at, picture in zip(wanted, written, strict=True) if picture is not None}

    def _picture(self, number: int, at: tuple[str, int]) -> Picture | None:
        try:
            image = self._images.numbered(*at)
        except UserError as error:
            self._missing(error)
            return None
        cell = self._places.cell(*image.size)
        image.thumbnail((_SIDE, _SIDE), Image.Resampling.BICUBIC)
        image.save(self._folder / f"{number:05d}.jpg", "JPEG", quality=_QUALITY)
        return Picture(number, cell)

    def _missing(self, error: UserError) -> None:
        """Of somebody's arrays, and of runs that have texts to show, images need not be at hand."""
        if self._needed:
            raise error
        self.reason = self.reason or str(error)

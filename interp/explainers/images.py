"""The X-rays behind examples of the image section, as language models are sent them."""

import functools
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np
from PIL import Image

from interp.exemplars.shown import ImageAt
from maira_jax.errors import UserError
from maira_jax.inputs.image import read_grey, stretch, to_thumbnail
from maira_jax.inputs.image_readers import ImageReaders
from maira_jax.inputs.prompt import study_images
from maira_jax.inputs.tokens import Kind
from maira_jax.studies.readers import load_studies
from maira_jax.studies.study import ImageSource, Study
from sae.activations.store import ActivationStore

_KEPT = 256  # encoded images kept in memory
# Longest side in pixels: what MedGemma takes, and 255 tokens to GPT-4o. Larger images are scaled down, none up.
SIDE = 448


def studies_of(section: ml_collections.ConfigDict, activations: Path) -> dict[str, Study]:
    """Study id -> the study, of all studies of a store.

    Args:
      section: the config's `studies` section, the one that the store was harvested from.
      activations: folder of the store.

    Raises:
      UserError: a study of the store is not there, or as `load_studies`.
    """
    found = {study.study_id: study for study in load_studies(section)}
    for study_id in ActivationStore.open(activations).studies["study_id"].to_pylist():
        if study_id not in found:
            raise UserError(
                f"study {study_id} of {activations} is not among config.studies: use the studies that the activations "
                "were harvested from"
            )
    return found


class StudyImages:
    """Finds and encodes images of a store's studies; studies are loaded when the first image is asked for.

    Args:
      studies: the config's `studies` section, the one that the store was harvested from.
      activations: folder of the store.
    """

    def __init__(self, studies: ml_collections.ConfigDict, activations: Path):
        self._section, self._activations = studies, activations
        self._readers = ImageReaders(SIDE, square=to_thumbnail)
        self._png = functools.lru_cache(maxsize=_KEPT)(self._encoded)

    def pngs(self, places: Sequence[ImageAt]) -> list[bytes]:
        """The PNG file, 8-bit grey, of each image; of a store of an image encoder, of the frontal one.

        Raises:
          UserError: the studies are not those of the store, or an image cannot be read.
        """
        for at in places:
            self._readers.submit(self._source(at))  # all of them begin to be read, by processes of their own
        return [self._png(at) for at in places]

    def _encoded(self, at: ImageAt) -> bytes:
        file = io.BytesIO()
        Image.fromarray(self._readers.submit(self._source(at)).result()).save(file, "PNG")
        return file.getvalue()

    def _source(self, at: ImageAt) -> ImageSource:
        return self._numbered(at.study_id, int(np.searchsorted(self._last_positions[at.study_id], at.position)))

    def numbered(self, study_id: str, number: int) -> Image.Image:
        """The whole image, 8-bit grey, of a study by its place in the prompt, from 0; raises as `pngs`."""
        image, name = self._numbered(study_id, number), f"an image of study {study_id}"
        return Image.fromarray(stretch(image if isinstance(image, np.ndarray) else read_grey(image), name))

    def _numbered(self, study_id: str, number: int) -> ImageSource:
        images = self.of(study_id)
        if number >= len(images):
            raise UserError(
                f"image {number + 1} of study {study_id} is not among config.studies: "
                "use the studies that the activations were harvested from"
            )
        return images[number]

    def of(self, study_id: str) -> tuple[ImageSource, ...]:
        """The images of a study in the order of the prompt; none of a study that is not there."""
        study = self._studies.get(study_id)
        return study_images(study) if study is not None else ()

    @functools.cached_property
    def _studies(self) -> dict[str, Study]:
        return studies_of(self._section, self._activations)

    @functools.cached_property
    def _last_positions(self) -> dict[str, Any]:
        """Study id -> positions of the last token of each of its images, in order."""
        store = ActivationStore.open(self._activations)
        tokens, ids = store.tokens, store.studies["study_id"].to_pylist()
        last = np.flatnonzero(tokens.kind == Kind.IMAGE_LAST)
        study, position = tokens.study[last], tokens.position[last]
        order = np.lexsort((position, study))
        begin = np.searchsorted(study[order], np.arange(len(ids) + 1))
        return {name: position[order[begin[i] : begin[i + 1]]] for i, name in enumerate(ids)}

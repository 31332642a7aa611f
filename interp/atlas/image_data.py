"""Gathers what the atlas shows of features of images: the images, small, with labels and heat maps."""

import base64
import io
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np
import pyarrow as pa
from PIL import Image

from interp.atlas.results import is_finished
from interp.exemplars import exemplar_table
from interp.exemplars.shown import ImageAt
from interp.explainers.images import StudyImages
from interp.medsae.similar import StudyCodes, nearest, shared_features
from maira_jax.errors import UserError
from maira_jax.inputs.regions import patch_boxes
from maira_jax.run.progress import progress
from sae.activations.store import TRAIN, ActivationStore

# These bound the size of the page, to about 15 MB.
_MAX_PICTURES = 1500  # images of all features together
_MAX_ROWS = {"top": 8, "decile": 1, "random": 4}  # images of a feature by kind, of each decile
_MAX_SIMILAR, _MAX_SHARED = 6, 4  # studies that are like one, and features that two share
_SIDE, _QUALITY = 160, 75  # longest side in pixels, and JPEG's quality
_MIN_PERCENT = 5  # of the feature's largest activation, for a patch of a heat map
_BATCH = 256  # features whose exemplars are read together


class Pictures:
    """The images of studies, as the page holds them, until there are too many.

    Attributes:
      found: study id -> "src" (data address), "labels" (those present) and "cell" (the upper left patch as fractions of
        the image; None without patches). "src" is None where images are not at hand.
      reason: why images are not at hand; "" where they are.

    Args:
      config: with the section `studies`, which the activations were harvested from.
      activations: folder of the store.
    """

    def __init__(self, config: ml_collections.ConfigDict, activations: Path):
        store = ActivationStore.open(activations)
        self.found: dict[str, dict[str, Any]] = {}
        self.reason = ""
        self._images, self._source = StudyImages(config.studies, activations), store.source
        rows = store.studies.select(["study_id", "labels"]).to_pylist()
        self._labels = {row["study_id"]: row["labels"] for row in rows}

    def add(self, study_id: str) -> bool:
        """Takes a study in; False where there are too many already.

        Raises:
          UserError: the study is not among `config.studies`, or its image cannot be read; for arrays that somebody else
            computed, whose images need not be at hand, this is the `reason` instead.
        """
        if study_id not in self.found:
            if len(self.found) >= _MAX_PICTURES:
                return False
            labels = [name for name, value in json.loads(self._labels[study_id]).items() if value]
            self.found[study_id] = {"labels": labels, "src": None, "cell": None} | self._picture(study_id)
        return True

    def _picture(self, study_id: str) -> dict[str, Any]:
        if self.reason:
            return {}
        try:
            image = self._images.picture(ImageAt(study_id, 0))
        except UserError as error:
            if "arrays" not in self._source:
                raise
            self.reason = str(error)
            return {}
        grid, cell = self._source.get("grid"), None
        if grid:
            cell = [float(f"{part:.5g}") for part in patch_boxes(*image.size, tuple(grid), self._source["view"])[0]]
        image.thumbnail((_SIDE, _SIDE), Image.Resampling.BICUBIC)
        file = io.BytesIO()
        image.save(file, "JPEG", quality=_QUALITY)
        return {"src": f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}", "cell": cell}


def exemplars(path: Path, table: pa.Table, shown: Sequence[int], pictures: Pictures) -> dict[str, Any]:
    """Images of the shown features, all from studies that scoring did not see.

    Args:
      path: exemplars.parquet.
      table: the feature table.
      shown: features, in the order in which their images are taken in while there is room.
      pictures: takes the images in.

    Returns:
      "tokens", which is empty, and "contexts": for each feature a list of [kind, decile, study, activation, heat map];
      a heat map is the numbers of patches and the percents of the feature's largest activation in turn.
    """
    rows: dict[int, list[Mapping[str, Any]]] = defaultdict(list)
    wanted = frozenset(shown)
    for begin in progress(range(0, table.num_rows, _BATCH), unit="batch", desc="atlas"):
        if not wanted.isdisjoint(range(begin, begin + _BATCH)):
            for row in _few(exemplar_table.read(path, begin, begin + _BATCH).to_pylist(), wanted):
                rows[row["feature"]].append(row)
    largest = table["max_activation"].to_pylist()
    contexts = {}
    for feature in shown:
        kept = [row for row in rows[feature] if pictures.add(row["study_id"])]
        if kept:
            contexts[str(feature)] = [_entry(row, largest[feature]) for row in kept]
    return {"tokens": [], "contexts": contexts}


def _few(rows: Iterable[Mapping[str, Any]], wanted: frozenset[int]) -> Iterable[Mapping[str, Any]]:
    """The rows of exemplars.parquet that the page shows."""
    taken: dict[tuple[int, str, int | None], int] = defaultdict(int)
    for row in rows:
        group = (row["feature"], row["kind"], row["decile"])
        if row["split"] == TRAIN and row["feature"] in wanted and taken[group] < _MAX_ROWS[row["kind"]]:
            taken[group] += 1
            yield row


def _entry(row: Mapping[str, Any], largest: float) -> list[Any]:
    heat = []
    if len(row["activations"]) > 1:
        percents = np.ceil(100 * np.minimum(np.array(row["activations"]) / (largest or 1.0), 1)).astype(int)
        strong = np.flatnonzero(percents >= _MIN_PERCENT)
        heat = np.column_stack([strong, percents[strong]]).ravel().tolist()
    decile = -1 if row["decile"] is None else row["decile"]
    return [row["kind"], decile, row["study_id"], float(f"{row['max_activation']:.4g}"), heat]


def similar(folder: Path, pictures: Pictures) -> dict[str, list[list[Any]]] | None:
    """The studies of other patients that are most like each one that the page shows, by their sparse codes.

    Args:
      folder: the codes of all studies.
      pictures: takes in the images of similar studies, while there is room.

    Returns:
      Study id -> [study id, similarity, [feature, its share of the similarity] of some] of each; None where there are
      no codes.
    """
    if not is_finished(folder):
        return None
    codes, found = StudyCodes.read(folder), dict[str, list[list[Any]]]()
    for study_id in progress(list(pictures.found), unit="study", desc="atlas: similar"):
        own = codes.row(study_id)
        rows, cosines = nearest(codes, own, _MAX_SIMILAR) if codes.norm[own] else ((), ())
        found[study_id] = []
        for row, cosine in zip(rows, cosines, strict=True):
            other, (features, shares) = str(codes.study_id[row]), shared_features(codes, own, int(row))
            shared = [[int(f), round(float(s), 3)] for f, s in zip(features[:_MAX_SHARED], shares, strict=False)]
            pictures.add(other)
            found[study_id].append([other, round(float(cosine), 3), shared])
    return found

"""Images whose findings are marked with boxes, and the rows of a store that hold their patches."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from maira_jax.inputs.image import width_height
from maira_jax.inputs.regions import View, patch_boxes
from maira_jax.inputs.tokens import Kind
from maira_jax.studies.study import Box, Study
from sae.activations.store import ActivationStore


@dataclasses.dataclass(frozen=True)
class BoxedImages:
    """m images with boxes of one concept, divided into P patches each.

    Attributes:
      study: row of the store's study table. int64 [m]
      first: the store's row of the first patch; the others follow it. int64 [m]
      area: of each patch, as a share of the image; without what lies outside of it. [m, P]
      covered: of each patch, the area that lies in a box, as a share of the image. [m, P]
      inside: whether the centre of the patch lies in a box. bool [m, P]
      box_area: of all boxes together, as a share of the image. [m]
    """

    study: np.ndarray
    first: np.ndarray
    area: np.ndarray
    covered: np.ndarray
    inside: np.ndarray
    box_area: np.ndarray


def frontal_patches(store: ActivationStore) -> tuple[np.ndarray, tuple[int, int], View] | None:
    """Where a store holds the patches of each study's frontal image.

    These are the rows of an encoder that stores patches, or a language model's tokens of the first image, if all are
    stored.

    Returns:
      The row of the first patch of every study, -1 where there are no patches, int64 [studies]; rows and columns of the
      patches; and how images are made square. None if no study has patches.
    """
    start, stop = (store.studies[name].to_numpy() for name in ("start", "stop"))
    source = store.source
    if "encoder" in source:
        grid = source.get("grid")
        return (np.where(stop > start, start, -1), (grid[0], grid[1]), source["view"]) if grid else None
    kind = store.tokens.kind
    is_image, is_last = np.isin(kind, (Kind.IMAGE, Kind.IMAGE_LAST)), kind == Kind.IMAGE_LAST
    begin, last = (_next(part, start) for part in (is_image, is_last))
    length = np.where(last < stop, last - begin + 1, 0)
    side = math.isqrt(int(length.max(initial=0)))
    return (np.where(length == side * side, begin, -1), (side, side), "crop") if side > 1 else None


def _next(chosen: np.ndarray, start: np.ndarray) -> np.ndarray:
    """The first row from each of `start` on that is `chosen [rows]`; the number of rows without one."""
    rows = np.append(np.flatnonzero(chosen), len(chosen))
    return rows[np.searchsorted(rows[:-1], start)]


def boxed_images(
    store: ActivationStore, studies: Mapping[str, Study], concepts: Sequence[str]
) -> dict[str, BoxedImages]:
    """The images with boxes of each concept that has any.

    Args:
      store: its studies' patches are counted; none without them.
      studies: study id -> the study, whose boxes and image are read.
      concepts: the names of the boxes that are read.
    """
    patches = frontal_patches(store)
    if patches is None:
        return {}
    first, grid, view = patches
    rows: dict[str, list[tuple[int, int, np.ndarray, np.ndarray, np.ndarray, float]]] = {name: [] for name in concepts}
    for number, study_id in enumerate(store.studies["study_id"].to_pylist()):
        study = studies.get(study_id)
        if study is None or study.frontal is None or not study.boxes or first[number] < 0:
            continue
        places = patch_boxes(*width_height(study.frontal), grid, view)  # [P, 4]
        for name in {box.name for box in study.boxes} & rows.keys():
            own = [box for box in study.boxes if box.name == name]
            rows[name].append((number, int(first[number]), *_overlap(places, own)))
    return {name: BoxedImages(*map(np.array, zip(*found, strict=True))) for name, found in rows.items() if found}


def _overlap(places: np.ndarray, boxes: Sequence[Box]) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """Of patches `places [P, 4]` the area, what boxes cover of it, and whether the centre is inside; the boxes' area.

    The plane is divided along all edges of the boxes, so that what several of them cover counts once.
    """
    boxes_xy = np.array([[box.x, box.y, box.x + box.width, box.y + box.height] for box in boxes])  # [boxes, 4]
    cells = [np.unique(np.concatenate([boxes_xy[:, axis], boxes_xy[:, axis + 2]])) for axis in (0, 1)]
    covered = np.zeros([len(edges) - 1 for edges in cells], bool)  # [columns, rows]
    for x, y, right, bottom in boxes_xy:
        columns, rows = (
            (edges[:-1] >= low) & (edges[1:] <= high)
            for edges, low, high in ((cells[0], x, right), (cells[1], y, bottom))
        )
        covered |= columns[:, None] & rows
    low, high = places[:, :2], places[:, :2] + places[:, 2:]
    shared = [
        np.clip(np.minimum(high[:, axis, None], edges[1:]) - np.maximum(low[:, axis, None], edges[:-1]), 0, None)
        for axis, edges in enumerate(cells)
    ]  # [P, columns], [P, rows]
    sizes = np.clip(np.minimum(high, 1) - np.maximum(low, 0), 0, None)  # [P, 2]
    centre = (low + high) / 2
    inside = ((centre[:, None] >= boxes_xy[:, :2]) & (centre[:, None] < boxes_xy[:, 2:])).all(2).any(1)
    area = float(np.diff(cells[0]) @ covered @ np.diff(cells[1]))
    return sizes.prod(1), np.einsum("px,xy,py->p", shared[0], covered, shared[1]), inside, area

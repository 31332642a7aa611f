"""Boxes on patches against rasters, and the rows of frontal patches among a prompt's tokens."""

import dataclasses

import numpy as np
import pyarrow as pa
import pytest

from interp.medsae.boxed_images import boxed_images, frontal_patches
from maira_jax.inputs.tokens import Kind
from maira_jax.studies.study import Box, Study
from sae.activations.token_rows import TokenRows


@dataclasses.dataclass
class Store:
    source: dict
    studies: pa.Table
    tokens: TokenRows


def encoder_store(n, n_patches, **source):
    start = np.arange(n) * n_patches
    studies = pa.table({"study_id": [f"s{i}" for i in range(n)], "start": start, "stop": start + n_patches})
    return Store({"encoder": "made_up"} | source, studies, TokenRows.without_tokens(n, n_patches))


def token_store(kinds):
    stop = np.cumsum([len(row) for row in kinds])
    studies = pa.table(
        {"study_id": [f"s{i}" for i in range(len(kinds))], "start": np.append(0, stop[:-1]), "stop": stop}
    )
    kind = np.array([int(kind) for row in kinds for kind in row])
    return Store({"site": "language.embed"}, studies, TokenRows(kind, kind, kind, kind))


def test_areas_are_those_of_a_raster_and_boxes_that_overlap_count_once():
    rng = np.random.default_rng(0)
    scale, (height, width) = 100, (60, 80)
    boxes = [Box("mass", 0.1, 0.2, 0.5, 0.3), Box("mass", 0.4, 0.1, 0.3, 0.6), Box("nodule", 0, 0, 1, 1)]
    study = Study("s0", "p", rng.integers(0, 255, (height, width)).astype(np.uint8), boxes=tuple(boxes))
    store = encoder_store(1, 6, grid=[2, 3], view="crop")
    found = boxed_images(store, {"s0": study}, ("mass", "hernia"))
    assert set(found) == {"mass"}
    images = found["mass"]
    # The crop is the square in the middle: x from 10 to 70 of 80 pixels.
    y, x = ((np.arange(size * scale) + 0.5) / scale for size in (height, width))
    marked = np.zeros((len(y), len(x)), bool)
    for box in boxes[:2]:
        inside_x = (x / width >= box.x) & (x / width < box.x + box.width)
        marked |= ((y / height >= box.y) & (y / height < box.y + box.height))[:, None] & inside_x
    row, column = (y // 30).astype(int), ((x - 10) // 20).astype(int)
    for p in range(6):
        here = (row == p // 3)[:, None] & (column == p % 3)
        assert images.area[0, p] == pytest.approx(here.mean(), abs=1e-4)
        assert images.covered[0, p] == pytest.approx((here & marked).mean(), abs=1e-4)
        centre_y, centre_x = 15 + 30 * (p // 3), 20 + 20 * (p % 3)
        assert images.inside[0, p] == marked[centre_y * scale, centre_x * scale]
    assert images.box_area[0] == pytest.approx(marked.mean(), abs=1e-4)


def test_patches_of_a_padded_square_that_lie_outside_have_no_area():
    study = Study("s0", "p", np.zeros((200, 400), np.uint8), boxes=(Box("mass", 0, 0, 1, 1),))
    images = boxed_images(encoder_store(1, 4, grid=[4, 1], view="pad"), {"s0": study}, ("mass",))["mass"]
    np.testing.assert_allclose(images.area, [[0, 0.5, 0.5, 0]])
    np.testing.assert_allclose(images.covered, images.area)
    assert images.inside.tolist() == [[False, True, True, False]]


def test_studies_without_boxes_images_or_patches_are_left_out():
    image, box = np.zeros((8, 8), np.uint8), (Box("mass", 0, 0, 0.5, 0.5),)
    studies = {
        "s0": Study("s0", "p", image),
        "s1": Study("s1", "p", None, boxes=box),
        "s2": Study("s2", "p", image, boxes=box),
    }
    images = boxed_images(encoder_store(4, 4, grid=[2, 2], view="crop"), studies, ("mass",))["mass"]
    assert images.study.tolist() == [2] and images.first.tolist() == [8]
    assert not boxed_images(encoder_store(4, 1, grid=None, view="pad"), studies, ("mass",))


def test_frontal_patches_are_the_first_image_of_a_prompt_if_all_are_stored():
    image = [Kind.IMAGE] * 3 + [Kind.IMAGE_LAST]
    whole, prior, text = [Kind.BOS, *image], [*image, Kind.BOILERPLATE, *image], [Kind.FINDINGS]
    first, grid, view = frontal_patches(token_store([whole, prior, [Kind.IMAGE_LAST], text]))
    assert (first.tolist(), grid, view) == ([1, 5, -1, -1], (2, 2), "crop")
    # Only the last token of each image, as the paper keeps them; and no image.
    assert frontal_patches(token_store([[Kind.IMAGE_LAST, Kind.FINDINGS]])) is None
    assert frontal_patches(token_store([text])) is None

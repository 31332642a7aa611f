"""Patches against the preprocessing itself: dots are drawn, and looked for in the encoder's square."""

import numpy as np
import pytest

from maira_jax.inputs.image import to_grey_square
from maira_jax.inputs.medclip_image import to_padded_square
from maira_jax.inputs.regions import patch_boxes

SQUARES = {"crop": to_grey_square, "pad": to_padded_square}


@pytest.mark.parametrize("view", SQUARES)
@pytest.mark.parametrize("width_height", [(518, 518), (701, 518), (400, 613), (112, 112), (97, 151)])
def test_a_dot_lands_in_the_patch_whose_box_holds_it(view, width_height):
    (width, height), size, grid = width_height, 224, (7, 8)
    boxes = patch_boxes(width, height, grid, view)  # [56, 4]
    rng = np.random.default_rng(width)
    found = 0
    for x, y in zip(rng.integers(6, width - 6, 40), rng.integers(6, height - 6, 40), strict=True):
        image = np.zeros((height, width), np.uint8)
        image[y - 2 : y + 3, x - 2 : x + 3] = 255
        square = SQUARES[view](image, size).astype(float)
        centre = np.array([(x + 0.5) / width, (y + 0.5) / height])
        # Distance of the dot to the nearest edge between patches, in pixels of the square.
        inside = (centre - boxes[:, :2]) / boxes[:, 2:]  # [56, 2]
        near = np.abs(inside - np.round(inside)) * [size / grid[1], size / grid[0]]
        holding = np.flatnonzero(((inside >= 0) & (inside < 1)).all(1))
        if near.min() < 3 or not len(holding):
            continue
        row, column = (int(np.average(np.arange(size), weights=square.sum(axis))) for axis in (1, 0))
        assert holding.tolist() == [(row * grid[0] // size) * grid[1] + column * grid[1] // size]
        found += 1
    assert found >= 10


def test_boxes_are_fractions_of_the_whole_image():
    np.testing.assert_allclose(
        patch_boxes(200, 100, (2, 2), "crop"),
        [[0.25, 0, 0.25, 0.5], [0.5, 0, 0.25, 0.5], [0.25, 0.5, 0.25, 0.5], [0.5, 0.5, 0.25, 0.5]],
    )
    # A padded square of 400 pixels begins 100 pixels above an image of 400 x 200.
    np.testing.assert_allclose(patch_boxes(400, 200, (4, 1), "pad")[:2], [[0, -0.5, 1, 0.5], [0, 0, 1, 0.5]])
    # A small image is centred on MedCLIP's smallest square.
    np.testing.assert_allclose(patch_boxes(112, 112, (1, 1), "pad"), [[-0.5, -0.5, 2, 2]])

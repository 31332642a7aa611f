"""Tokens of images are traced to their image, their patch and their place in the X-ray."""

import types

import numpy as np
import pytest

from interp.atlas.gathering.image_places import ImagePlaces
from maira_jax.inputs.regions import patch_boxes
from maira_jax.inputs.tokens import Kind
from sae.activations.token_rows import TokenRows

STORE = types.SimpleNamespace(source={"site": "language.0.resid_post"})


def tokens(*studies):
    """Each study is [(position, kind), ...]."""
    rows = [(number, *row) for number, study in enumerate(studies) for row in study]
    study, position, kind = (np.array(column, np.int32) for column in zip(*rows, strict=True))
    return TokenRows(study, position, np.zeros(len(rows), np.int32), kind.astype(np.int8))


def image(first):
    """An image of the 2 x 2 patches that the run's model has."""
    return [(first + i, Kind.IMAGE if i < 3 else Kind.IMAGE_LAST) for i in range(4)]


def test_patches_of_every_image_are_found(run_dir):
    found = tokens([*image(5), *image(20), (30, Kind.FINDINGS)], image(7))
    places = ImagePlaces(run_dir, STORE, found)
    assert places.grid == (2, 2)
    at = [(0, 5), (0, 8), (0, 20), (0, 22), (1, 7), (1, 10)]
    study, position = (np.array(column) for column in zip(*at, strict=True))
    assert places.numbers(study, position).tolist() == [0, 0, 1, 1, 0, 0]
    assert [places.first_patch(*one) for one in at] == [0, 3, 0, 2, 0, 3]
    assert places.cell(30, 20) == pytest.approx(patch_boxes(30, 20, (2, 2), "crop")[0], rel=1e-4)


def test_without_inner_tokens_there_are_no_patches(run_dir):
    found = tokens([(8, Kind.IMAGE_LAST), (23, Kind.IMAGE_LAST), (30, Kind.FINDINGS)])
    places = ImagePlaces(run_dir, STORE, found)
    assert places.grid is None and places.cell(30, 20) is None
    assert places.numbers(np.array([0, 0]), np.array([8, 23])).tolist() == [0, 1]

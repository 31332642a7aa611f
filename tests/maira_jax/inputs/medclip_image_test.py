"""MedCLIP's preprocessing, against its feature extractor written out with PIL and numpy."""

import jax
import numpy as np
import pytest
from PIL import Image

from maira_jax.errors import UserError
from maira_jax.inputs.image import stretch
from maira_jax.inputs.medclip_image import levels, to_padded_square


def original(image: Image.Image) -> np.ndarray:
    """What MedCLIP's feature extractor does to an opened image: float32 [224, 224]."""
    x, y = image.size
    size = max(224, x, y)
    padded = Image.new("L", (size, size), 0)
    padded.paste(image, (int((size - x) / 2), int((size - y) / 2)))
    resized = padded.resize((224, 224), resample=Image.BICUBIC)
    pixels = np.array(resized).astype(np.float32) * (1 / 255.0)
    mean, std = np.array(0.5862785803043838).astype(np.float32), np.array(0.27950088968644304).astype(np.float32)
    return (pixels - mean) / std


def grey(width, height, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width), dtype=np.uint8)


SIZES = [(224, 224), (225, 224), (301, 257), (257, 302), (99, 37), (1, 3), (223, 500)]


@pytest.mark.parametrize("width, height", SIZES)
def test_pixels_are_those_of_the_original(tmp_path, width, height):
    image = Image.fromarray(grey(width, height))
    image.save(tmp_path / "image.png")
    expected = np.repeat(original(image)[..., None], 3, axis=-1)
    for source in (tmp_path / "image.png", grey(width, height)):
        square = to_padded_square(source, 224)
        assert square.dtype == np.uint8
        np.testing.assert_array_equal(levels()[square], expected)
    looked_up = jax.jit(lambda levels, square: levels[square])(levels(), square)
    np.testing.assert_array_equal(np.asarray(looked_up), expected)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "1"])
def test_other_modes_of_8_bits(tmp_path, mode):
    colours = np.random.default_rng(0).integers(0, 256, (50, 300, 3), dtype=np.uint8)
    Image.fromarray(colours).convert(mode).save(tmp_path / "image.png")
    with Image.open(tmp_path / "image.png") as image:
        expected = original(image)
    np.testing.assert_array_equal(levels()[to_padded_square(tmp_path / "image.png", 224)][..., 0], expected)


def test_8_bits_are_not_stretched_and_may_be_constant():
    assert set(np.unique(to_padded_square(np.full((300, 300), 7, np.uint8), 224))) == {7}


def test_deeper_pixels_are_stretched_first(tmp_path):
    deep = grey(301, 257).astype(np.uint16) * 13 + 100
    Image.fromarray(deep).save(tmp_path / "deep.png")
    expected = original(Image.fromarray(stretch(deep)))
    for source in (tmp_path / "deep.png", deep):
        np.testing.assert_array_equal(levels()[to_padded_square(source, 224)][..., 0], expected)


@pytest.mark.parametrize(
    "image", [np.zeros((2, 2, 3), np.uint8), np.zeros((0, 4), np.uint8), np.full((3, 3), 900, np.uint16)]
)
def test_what_is_no_grey_image_gets_a_sentence(image):
    with pytest.raises(UserError, match="the image array"):
        to_padded_square(image, 224)

"""Pixels against MAIRA-2's stretch followed by transformers' PIL image processor: equal bit for bit."""

import json
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from maira_jax.errors import UserError
from maira_jax.inputs.image import ImageConfig, preprocess, preprocess_batch, read_grey, stretch, width_height

CONFIG = {
    "crop_size": {"height": 518, "width": 518},
    "do_center_crop": True,
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.5307, 0.5307, 0.5307],
    "image_processor_type": "BitImageProcessor",
    "image_std": [0.2583, 0.2583, 0.2583],
    "resample": 3,
    "rescale_factor": 0.00392156862745098,
    "size": {"shortest_edge": 518},
}
SMALL = ImageConfig(64, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))


@pytest.fixture
def cfg(tmp_path) -> ImageConfig:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(CONFIG))
    return ImageConfig.from_dir(tmp_path)


def reference(image: Image.Image, size: int, mean, std) -> np.ndarray:
    """MAIRA-2's `_normalize_image`, then the image processor that its configuration names."""
    from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil

    grey = np.array(image.convert("L")).astype(float)
    grey -= grey.min()
    grey /= grey.max()
    grey *= 255
    processor = BitImageProcessorPil(
        size={"shortest_edge": size},
        crop_size={"height": size, "width": size},
        image_mean=list(mean),
        image_std=list(std),
        resample=3,
    )
    stretched = Image.fromarray(grey.astype(np.uint8)).convert("L")
    return processor(stretched, return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)


def test_real_xrays(shared_data, cfg):
    for path in sorted((shared_data / "nih-cxr14-mini" / "images").glob("*.jpg"))[:6]:
        pixels = preprocess(path, cfg)
        assert pixels.dtype == np.float32
        np.testing.assert_array_equal(pixels, reference(Image.open(path), 518, cfg.mean, cfg.std))


@pytest.mark.parametrize("shape", [(64, 64), (64, 90), (91, 64), (40, 31), (33, 200), (301, 299), (65, 64)])
def test_any_size(shape):
    grey = np.random.default_rng(0).integers(3, 200, shape, dtype=np.uint8)
    wanted = reference(Image.fromarray(grey), 64, SMALL.mean, SMALL.std)
    np.testing.assert_array_equal(preprocess(grey, SMALL), wanted)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P", "L"])
def test_colour_files(tmp_path, mode):
    colours = np.random.default_rng(1).integers(0, 256, (80, 70, 3), dtype=np.uint8)
    path = tmp_path / "image.png"
    Image.fromarray(colours).convert(mode).save(path)
    wanted = reference(Image.open(path), 64, SMALL.mean, SMALL.std)
    np.testing.assert_array_equal(preprocess(path, SMALL), wanted)


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_sixteen_bits_are_scaled_by_their_own_range(tmp_path, suffix):
    deep = np.random.default_rng(2).integers(1000, 40000, (70, 90)).astype(np.uint16)
    path = tmp_path / f"image.{suffix}"
    Image.fromarray(deep).save(path)
    scaled = (deep - 1000.0 if deep.min() == 1000 else deep.astype(float) - deep.min()) / np.ptp(deep) * 255
    wanted = scaled.astype(np.uint8)
    np.testing.assert_array_equal(stretch(deep), wanted)
    # The second stretch of an image that already has the full range changes nothing.
    np.testing.assert_array_equal(preprocess(path, SMALL), preprocess(wanted, SMALL))


@pytest.mark.parametrize("kind", ["uint16", "float32"])
def test_white_is_zero_is_turned_around(tmp_path, kind):
    """As TIFF has it; Pillow does this itself for 8 bits, reading and writing."""
    grey = np.random.default_rng(5).integers(7, 250, (70, 90)).astype(kind)
    path = tmp_path / "image.tiff"
    Image.fromarray(grey).save(path, tiffinfo={262: 0})
    np.testing.assert_array_equal(stretch(read_grey(path)), stretch(grey.max() - grey))
    eight_bits = grey.astype(np.uint8)
    Image.fromarray(eight_bits).save(path, tiffinfo={262: 0})
    np.testing.assert_array_equal(read_grey(path), eight_bits)


def test_real_xrays_of_any_shape_and_depth(shared_data, tmp_path):
    """Parts of real X-rays, so that they are resized too; and as 16-bit files, whose range is theirs alone."""
    rng = np.random.default_rng(6)
    paths = sorted((shared_data / "nih-cxr14-mini" / "images").glob("*.jpg"))[::300]
    for path in paths:
        whole = read_grey(path)
        height, width = rng.integers(150, 510, 2)
        part = whole[-height:, :width]
        wanted = reference(Image.fromarray(part), 64, SMALL.mean, SMALL.std)
        np.testing.assert_array_equal(preprocess(part, SMALL), wanted)
        Image.fromarray(part.astype(np.uint16) * 200 + 1000).save(tmp_path / "deep.png")
        assert np.abs(preprocess(tmp_path / "deep.png", SMALL) - wanted).max() <= 1.01 / 255 / min(SMALL.std)


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 150), st.integers(1, 150)),
    low=st.integers(0, 254),
    spread=st.integers(1, 255),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_image_has_pytorchs_pixels(shape, low, spread, seed):
    grey = np.random.default_rng(seed).integers(low, min(low + spread, 255) + 1, shape).astype(np.uint8)
    grey.flat[0], grey.flat[-1] = low, min(low + spread, 255)
    if grey.size == 1:
        return
    wanted = reference(Image.fromarray(grey), 64, SMALL.mean, SMALL.std)
    np.testing.assert_array_equal(preprocess(grey, SMALL), wanted)


def test_float_and_signed_arrays():
    grey = np.linspace(-1000, 2000, 64 * 64).reshape(64, 64)
    out = stretch(grey.astype(np.float32))
    assert (out.min(), out.max()) == (0, 255) and (np.diff(out.ravel().astype(int)) >= 0).all()
    assert abs(stretch(grey.astype(np.int16)).astype(int) - out).max() <= 1


def test_fractions_are_cut_and_not_rounded():
    ramp = np.arange(201, dtype=np.uint8).reshape(1, -1)
    exact = ramp / 200 * 255
    np.testing.assert_array_equal(stretch(ramp), np.floor(exact))
    assert (stretch(ramp) != np.rint(exact)).mean() > 0.4


def test_batch_equals_one_by_one():
    images = np.random.default_rng(3).integers(10, 99, (5, 64, 64), dtype=np.uint8)
    pixels = preprocess_batch(images, SMALL)
    np.testing.assert_array_equal(pixels, [preprocess(image, SMALL) for image in images])
    assert pixels.dtype == np.float32
    images[2] = 7
    with pytest.raises(UserError, match="image 2 of the batch is constant"):
        preprocess_batch(images, SMALL)
    with pytest.raises(UserError, match="give uint8"):
        preprocess_batch(images[:, :32], SMALL)


def test_unusable_arrays_are_refused():
    for array, words in [
        (np.full((8, 8), 3, np.uint8), "constant"),
        (np.zeros((8, 8, 3), np.uint8), "shape"),
        (np.zeros((0, 8), np.uint8), "shape"),
        (np.array([[1.0, np.nan]]), "finite"),
        (np.array([[True, False]]), "bool"),
    ]:
        with pytest.raises(UserError, match=words):
            preprocess(array, SMALL)


def test_unusable_files_are_refused_by_name(tmp_path):
    grey = np.random.default_rng(4).integers(0, 255, (80, 80), dtype=np.uint8)
    Image.fromarray(grey).save(tmp_path / "whole.png")
    whole = (tmp_path / "whole.png").read_bytes()
    Image.fromarray(grey).save(tmp_path / "whole.jpg")
    files = {
        "empty.png": b"",
        "text.png": b"this is not an image",
        "cut.png": whole[: len(whole) // 2],
        "cut.jpg": (tmp_path / "whole.jpg").read_bytes()[:2000],
        "flipped.png": whole[:60] + bytes(byte ^ 255 for byte in whole[60:200]) + whole[200:],
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=name):
            preprocess(tmp_path / name, SMALL)
    (tmp_path / "study.dcm").write_bytes(bytes(128) + b"DICM" + bytes(500))
    with pytest.raises(UserError, match="study.dcm is DICOM"):
        preprocess(tmp_path / "study.dcm", SMALL)
    Image.fromarray(grey).save(tmp_path / "two.tiff", save_all=True, append_images=[Image.fromarray(grey)])
    with pytest.raises(UserError, match="two.tiff holds several images"):
        preprocess(tmp_path / "two.tiff", SMALL)
    (tmp_path / "colour.png").write_bytes(_sixteen_bit_colour())
    with pytest.raises(UserError, match="colour.png is 16-bit colour"):
        preprocess(tmp_path / "colour.png", SMALL)
    with pytest.raises(UserError, match="absent.png does not exist"):
        preprocess(tmp_path / "absent.png", SMALL)
    Image.new("L", (80, 80), 9).save(tmp_path / "black.png")
    with pytest.raises(UserError, match="black.png is constant"):
        preprocess(tmp_path / "black.png", SMALL)


def test_of_a_file_with_many_images_only_the_first_header_is_read(tmp_path):
    path, grey = tmp_path / "chain.tiff", Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8))
    grey.save(path, save_all=True, append_images=[grey])
    content = bytearray(path.read_bytes())
    (first,) = struct.unpack_from("<I", content, 4)
    (n_tags,) = struct.unpack_from("<H", content, first)
    struct.pack_into("<I", content, first + 2 + 12 * n_tags, len(content))  # the second one is not there
    path.write_bytes(content)
    with pytest.raises(UserError, match="chain.tiff holds several images"):
        read_grey(path)


def test_jpegs_of_more_scans_than_an_image_needs_are_refused(tmp_path):
    grey, path = np.random.default_rng(5).integers(0, 255, (64, 80), dtype=np.uint8), tmp_path / "scans.jpg"
    Image.fromarray(grey).save(path, progressive=True)
    whole = path.read_bytes()
    last = whole.rindex(b"\xff\xda")
    n_scans = whole.count(b"\xff\xda")
    path.write_bytes(whole[:last] + whole[last:-2] * (101 - n_scans) + whole[-2:])
    assert read_grey(path).shape == grey.shape
    path.write_bytes(whole[:last] + whole[last:-2] * (102 - n_scans) + whole[-2:])
    with pytest.raises(UserError, match=r"scans.jpg has more than 100 scans: replace the file"):
        read_grey(path)


def _header_of(width: int, height: int, depth: int = 16) -> bytes:
    """A PNG that says to have so many pixels, and has few."""
    return _png(struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0), bytes(100))


@pytest.mark.parametrize(("width", "height"), [(300_000, 1), (1, 300_000), (13_000, 13_000), (2**31 - 1, 2**31 - 1)])
def test_absurd_sizes_are_refused_before_pixels_are_made(tmp_path, width, height):
    (tmp_path / "large.png").write_bytes(_header_of(width, height))
    for read in (read_grey, width_height):
        with pytest.raises(UserError, match=r"large.png (has \d+ x \d+ pixels|cannot be read)"):
            read(tmp_path / "large.png")


@pytest.mark.parametrize("kind", ["BMP", "GIF", "EPS", "WEBP", "PPM", "ICO"])
def test_other_kinds_of_images_are_not_decoded_whatever_their_name(tmp_path, kind):
    Image.fromarray(np.arange(64 * 64, dtype=np.uint8).reshape(64, 64)).save(tmp_path / "image.png", kind)
    with pytest.raises(UserError, match="image.png is none of PNG, JPEG, TIFF or DICOM"):
        read_grey(tmp_path / "image.png")


def _sixteen_bit_colour() -> bytes:
    """A PNG that Pillow reads but cannot write: 2 x 2 pixels of 3 x 16 bits."""
    rows = b"".join(b"\0" + bytes(range(12)) for _ in range(2))
    return _png(struct.pack(">IIBBBBB", 2, 2, 16, 2, 0, 0, 0), rows)


def _png(head: bytes, rows: bytes) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.filterwarnings("ignore:.*:UserWarning")  # Pillow's, on the way to an error
@pytest.mark.parametrize("suffix", ["png", "jpg", "tiff"])
def test_damaged_files_are_read_or_refused(tmp_path, suffix):
    rng = np.random.default_rng(7)
    path = tmp_path / f"image.{suffix}"
    Image.fromarray(rng.integers(0, 255, (40, 50), dtype=np.uint8)).save(path)
    whole = path.read_bytes()
    refused = 0
    for _ in range(150):
        damaged = bytearray(whole)
        for place in rng.integers(0, min(len(whole), rng.choice([60, len(whole)])), 3):
            damaged[place] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            assert read_grey(path).ndim == 2
        except UserError:
            refused += 1
    assert refused > 30
    for length in range(0, len(whole) - 20, max(1, len(whole) // 40)):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match=path.name):
            read_grey(path)


def test_config_is_read_and_what_it_does_not_know_is_refused(tmp_path, cfg):
    assert (cfg.size, cfg.mean[0], cfg.std[0]) == (518, 0.5307, 0.2583)
    for change in (
        {"resample": 2},
        {"do_resize": False},
        {"image_processor_type": "CLIPImageProcessor"},
        {"crop_size": {"height": 500, "width": 518}},
        {"image_mean": [0.5]},
        {"image_std": [0, 0, 0]},
        {"image_mean": [float("nan")] * 3},
        {"rescale_factor": 0},
        {"size": {"height": 518}},
    ):
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(CONFIG | change))
        with pytest.raises(UserError, match="preprocessor_config.json"):
            ImageConfig.from_dir(tmp_path)

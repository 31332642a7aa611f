"""From an X-ray file to the pixels that the vision tower reads.

The order and the number formats are those of MAIRA-2's processor followed by transformers' `BitImageProcessorPil`, and
the result is the same bit for bit: grey, min-max stretch in float64 truncated (not rounded) to 8 bits, PIL bicubic to
the short edge, centre crop, product with 1/255 in float64 kept as float32, normalisation in float32.
"""

import contextlib
import dataclasses
import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np
from PIL import Image, UnidentifiedImageError

from maira_jax.errors import UserError, first_line
from maira_jax.inputs import dicom
from maira_jax.run import files
from maira_jax.studies.study import ImageSource

_LEVELS = np.arange(256)
# PIL modes with more than 8 bits of grey. PIL's own conversion to 8 bits would clip them at 255.
_DEEP_MODES = ("I", "I;16", "I;16L", "I;16B", "I;16N", "F")
_PHOTOMETRIC, _WHITE_IS_ZERO = 262, 0  # TIFF's tag, and its value for inverted grey

# By content. PIL would also start other programs (EPS), or decoders that nobody makes X-rays for.
_FORMATS = ("PNG", "JPEG", "TIFF")
_JPEG = ("JPEG", "MPO")  # what PIL calls a JPEG file
# Longer strips are no X-rays, and would become far longer when their short edge is resized.
_MAX_TIMES_LONGER = 32


@dataclasses.dataclass(frozen=True)
class ImageConfig:
    """What `preprocessor_config.json` of a checkpoint says.

    Attributes:
      size: side of the square that the vision tower encodes, in pixels (518 for MAIRA-2).
      mean, std: mean and standard deviation of each of the three channels, in units of the full grey scale.
      rescale_factor: factor from grey levels to the full grey scale, 1/255.
    """

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    rescale_factor: float = 1 / 255

    @classmethod
    def from_dir(cls, checkpoint_dir: Path) -> Self:
        """Reads a checkpoint folder.

        Raises:
          UserError: the file is missing, or asks for a preprocessing that this module does not do.
        """
        path = Path(checkpoint_dir) / "preprocessor_config.json"
        config = files.read_object(path)
        expected: dict[str, Any] = {
            "image_processor_type": "BitImageProcessor",
            "do_convert_rgb": True,
            "do_resize": True,
            "do_center_crop": True,
            "do_rescale": True,
            "do_normalize": True,
            "resample": 3,
        }
        for key, value in expected.items():
            if config.get(key, value) != value:
                raise UserError(f"{path}: {key} is {config[key]!r}, only {value!r} is supported: restore the file")
        try:
            size, crop = config["size"]["shortest_edge"], config["crop_size"]
            if not size == crop["height"] == crop["width"]:
                raise UserError(f"{path}: crop_size must be the square of size.shortest_edge: restore the file")
            mean, std = tuple(map(float, config["image_mean"])), tuple(map(float, config["image_std"]))
            factor = float(config.get("rescale_factor", 1 / 255))
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path} lacks size, crop_size, image_mean or image_std: restore the file") from error
        if len(mean) != 3 or len(std) != 3:
            raise UserError(f"{path}: image_mean and image_std need three numbers: restore the file")
        if not all(map(math.isfinite, (*mean, *std, factor))) or min(*std, factor) <= 0:
            raise UserError(f"{path}: image_mean, image_std or rescale_factor cannot be true: restore the file")
        return cls(size, mean, std, factor)

    def levels(self) -> np.ndarray:
        """The pixel value of each grey level: float32 [256, 3]."""
        # float64 product, float32 from there on: what transformers does to each pixel, done once per level.
        scaled = (_LEVELS.astype(np.float64) * self.rescale_factor).astype(np.float32)[:, None]
        return (scaled - np.asarray(self.mean, np.float32)) / np.asarray(self.std, np.float32)


def preprocess(image: ImageSource, cfg: ImageConfig) -> np.ndarray:
    """Pixels of one image.

    Args:
      image: a PNG, JPEG, TIFF or DICOM file, or a grey array [height, width], 8-bit or deeper (as `stretch`).
      cfg: how the checkpoint's vision tower takes its images.

    Returns:
      float32 [size, size, 3]. The model's convolution takes channels last; PyTorch's is this with channels first.

    Raises:
      UserError: as `read_grey` and `stretch`.
    """
    return cfg.levels()[to_grey_square(image, cfg.size)]


def to_grey_square(image: ImageSource, size: int) -> np.ndarray:
    """The stretched, resized and cropped image before normalisation: uint8 [size, size]."""
    return _cropped(to_grey(image), size)


def to_unstretched_square(image: ImageSource, size: int) -> np.ndarray:
    """The same of the image as `to_eight_bits` gives it, which is what transformers' image processor alone does."""
    return _cropped(to_eight_bits(image), size)


def _cropped(grey: np.ndarray, size: int) -> np.ndarray:
    height, width = grey.shape
    short, long = sorted((height, width))
    new_long = int(size * long / short)
    new_height, new_width = (new_long, size) if height > width else (size, new_long)
    resized = Image.fromarray(grey).resize((new_width, new_height), Image.Resampling.BICUBIC)
    top, left = (new_height - size) // 2, (new_width - size) // 2
    return np.asarray(resized)[top : top + size, left : left + size]


def to_thumbnail(image: ImageSource, size: int) -> np.ndarray:
    """The whole image, stretched, and scaled down where a side is longer than `size`: uint8 [height, width]."""
    picture = Image.fromarray(to_grey(image))
    picture.thumbnail((size, size), Image.Resampling.BICUBIC)
    return np.asarray(picture)


def to_grey(image: ImageSource) -> np.ndarray:
    """The whole image, stretched: uint8 [height, width].

    Raises:
      UserError: as `read_grey` and `stretch`.
    """
    name = "the image array" if isinstance(image, np.ndarray) else str(image)
    return stretch(image if isinstance(image, np.ndarray) else read_grey(image), name)


def to_eight_bits(image: ImageSource) -> np.ndarray:
    """The whole image: grey levels of 8 bits as they are, deeper ones stretched. uint8 [height, width]

    Raises:
      UserError: as `read_grey`; as `stretch` for deeper images and other shapes.
    """
    name = "the image array" if isinstance(image, np.ndarray) else str(image)
    grey = image if isinstance(image, np.ndarray) else read_grey(image)
    return grey if grey.dtype == np.uint8 and grey.ndim == 2 and grey.size else stretch(grey, name)


def width_height(image: ImageSource) -> tuple[int, int]:
    """Size of an image in pixels; only the header of a file is read.

    Raises:
      UserError: the file cannot be read.
    """
    if isinstance(image, np.ndarray):
        return image.shape[1], image.shape[0]
    if dicom.is_dicom(image):
        return dicom.dicom_width_height(image)
    with _opened(image) as opened:
        return opened.size


def read_grey(path: Path) -> np.ndarray:
    """Reads an image file as grey levels [height, width], more is brighter.

    Returns:
      uint8 for files of 8 bits per channel (colour is converted by PIL's luma), the file's own integers or floats for
      deeper grey, such as 16-bit PNG or TIFF; inverted where the file says that zero is white. DICOM as `read_dicom`.

    Raises:
      UserError: the file is missing, empty or broken, has more than 2^25 pixels or is a strip, holds several images,
        has more than 100 scans, or is colour of more than 8 bits; DICOM as `read_dicom`.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"image {path} does not exist: check the path")
    if dicom.is_dicom(path):
        return dicom.read_dicom(path)
    with _opened(path) as image:
        if image.format in _JPEG and dicom.has_too_many_scans(path.read_bytes()):
            raise UserError(
                f"image {path} has more than {dicom.MAX_SCANS} scans: replace the file or leave the study out"
            )
        image.load()
        if image.mode not in _DEEP_MODES:
            return np.asarray(image.convert("L"))
        # PIL turns grey around where zero is white, but only up to 8 bits.
        tags = getattr(image, "tag_v2", {})
        return _inverted(np.asarray(image)) if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO else np.asarray(image)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """An image file whose header was read and found sound; whatever goes wrong in the context becomes a UserError."""
    # What PIL warns of is refused below.
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
    try:
        with Image.open(path, formats=_FORMATS) as image:
            _refuse_unclear(image, path)
            yield image
    except UserError:
        raise
    except UnidentifiedImageError as error:
        wanted = f"{', '.join(_FORMATS)} or DICOM"
        raise UserError(f"image {path} is none of {wanted}: replace the file or leave the study out") from error
    except Exception as error:  # PIL's decoders raise many kinds on broken files
        raise UserError(
            f"image {path} cannot be read ({first_line(error)}): replace the file or leave the study out"
        ) from error


def _refuse_unclear(image: Image.Image, path: Path) -> None:
    width, height = image.size
    if not 1 <= width * height <= dicom.MAX_PIXELS or max(width, height) > _MAX_TIMES_LONGER * min(width, height):
        raise UserError(
            f"image {path} has {width} x {height} pixels: give one of at most {dicom.MAX_PIXELS}, whose longer edge is "
            f"at most {_MAX_TIMES_LONGER} times the shorter"
        )
    if getattr(image, "is_animated", False):  # PIL counts the images of a TIFF file by reading all their headers
        raise UserError(f"image {path} holds several images: save the one to be read as a separate file")
    if image.mode not in _DEEP_MODES and any(";16" in str(tile[3]) for tile in getattr(image, "tile", ())):
        raise UserError(f"image {path} is 16-bit colour, of which 8 bits would be lost: save it as 16-bit grey")


def _inverted(grey: np.ndarray) -> np.ndarray:
    return np.iinfo(grey.dtype).max - grey if np.issubdtype(grey.dtype, np.unsignedinteger) else -grey


def stretch(grey: np.ndarray, name: str = "the image") -> np.ndarray:
    """Spreads grey levels over the full 8-bit range, truncating fractions.

    Deeper images (16-bit, float) are stretched from their own minimum to their own maximum in one step, where MAIRA-2's
    code would clip them at 255. Where white means air, invert the image before.

    Args:
      grey: [height, width], integers or floats.
      name: what the error message calls the image.

    Returns:
      uint8 [height, width].

    Raises:
      UserError: not a two-dimensional array with content, not finite, or constant (which is 0/0 in MAIRA-2's code, and
        what it becomes there is undefined).
    """
    if grey.ndim != 2 or grey.size == 0:
        raise UserError(f"{name} has shape {grey.shape}: give a grey image [height, width]")
    if not (np.issubdtype(grey.dtype, np.integer) or np.issubdtype(grey.dtype, np.floating)):
        raise UserError(f"{name} holds {grey.dtype} values: give integers or floats")
    low, high = grey.min(), grey.max()
    if not np.isfinite(low) or not np.isfinite(high):
        raise UserError(f"{name} holds values that are not finite: replace them")
    if low == high:
        raise UserError(f"{name} is constant (every pixel is {low}): replace it or leave the study out")
    if grey.dtype == np.uint8:
        return _stretch_table(low, high)[grey]
    values = grey.astype(np.float64)
    return _stretched(values, values.min(), values.max())


def preprocess_batch(images: np.ndarray, cfg: ImageConfig) -> np.ndarray:
    """`preprocess` for many arrays that already have the right size, in one go.

    Args:
      images: uint8 [n, size, size].
      cfg: how the checkpoint's vision tower takes its images.

    Returns:
      float32 [n, size, size, 3], equal to `preprocess` of each.

    Raises:
      UserError: another shape or type, or a constant image.
    """
    if images.dtype != np.uint8 or images.shape[1:] != (cfg.size, cfg.size):
        raise UserError(f"images are {images.dtype} {images.shape}: give uint8 [n, {cfg.size}, {cfg.size}]")
    levels = cfg.levels()
    pixels = np.empty((*images.shape, 3), np.float32)
    lows, highs = images.min(axis=(1, 2)), images.max(axis=(1, 2))
    for i, (low, high) in enumerate(zip(lows, highs, strict=True)):
        if low == high:
            raise UserError(f"image {i} of the batch is constant (every pixel is {low}): leave the study out")
        np.take(levels[_stretch_table(low, high)], images[i], axis=0, out=pixels[i])
    return pixels


def _stretch_table(low: np.integer, high: np.integer) -> np.ndarray:
    """What each of the 256 grey levels becomes; levels outside [low, high] do not occur and are clipped."""
    return _stretched(np.clip(_LEVELS, low, high).astype(np.float64), float(low), float(high))


def _stretched(values: np.ndarray, low: float, high: float) -> np.ndarray:
    # The order of the operations decides the last bit: subtract, divide by the new maximum, multiply.
    stretched = values - low
    stretched /= high - low
    stretched *= 255
    return stretched.astype(np.uint8)

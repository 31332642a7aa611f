"""From an X-ray file to the pixels that MedCLIP's encoders read.

The order and the number formats are those of MedCLIP's feature extractor, and the result is the same bit for bit: the
grey image is centred on a black square whose side is that of its longer edge, or of the encoder's input if that is
longer; PIL bicubic to the input's size; a product with 1/255 and the normalisation in float32.

Grey levels of 8 bits stay as they are, without MAIRA-2's stretch. Deeper images are stretched to 8 bits from their own
minimum to their own maximum, as for MAIRA-2, which is a choice of this package: MedCLIP's code clips them at 255.
"""

import numpy as np
from PIL import Image

from maira_jax.inputs.image import to_eight_bits
from maira_jax.studies.study import ImageSource

# MedCLIP's constants, in units of the full grey scale (RyanWangZf/MedCLIP, medclip/constants.py).
_MEAN, _STD = np.float32(0.5862785803043838), np.float32(0.27950088968644304)


def to_padded_square(image: ImageSource, size: int) -> np.ndarray:
    """The padded and resized image before normalisation: uint8 [size, size].

    Args:
      image: a PNG, JPEG, TIFF or DICOM file, or a grey array [height, width].
      size: side of the encoder's input, in pixels (224 for MedCLIP).

    Raises:
      UserError: as `to_eight_bits`.
    """
    grey = to_eight_bits(image)
    height, width = grey.shape
    side = max(size, height, width)
    square = Image.new("L", (side, side))
    square.paste(Image.fromarray(grey), ((side - width) // 2, (side - height) // 2))
    return np.asarray(square.resize((size, size), Image.Resampling.BICUBIC))


def levels() -> np.ndarray:
    """The pixel value of each grey level in the three channels, which are equal: float32 [256, 3]."""
    scaled = np.arange(256, dtype=np.float32) * np.float32(1 / 255)
    return np.repeat(((scaled - _MEAN) / _STD)[:, None], 3, axis=1)

"""Grey levels of a DICOM image, as a display shows them.

In the order of the standard (PS3.3, C.11): stored values, modality LUT or rescale slope and intercept, VOI LUT or
window, and the direction of the photometric interpretation. Where a file has both, a VOI LUT is taken before a window,
and of several the first: they are alternative views. Pixels of the padding value, or in the padding range, are
background. Overlays and shutters are not drawn.

`maira_jax.inputs.image.stretch` then spreads what the window left over 8 bits. The JPEGs of MIMIC-CXR-JPG differ: they
were made from the stored values, without a window, and their histograms are equalised (Johnson et al., 2019).

Only the elements listed here are read from a file. None of them describes a patient; nothing else of its header is
kept, and no message quotes it.
"""

import contextlib
import io
import logging
import struct
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from maira_jax.errors import UserError

_PREAMBLE = 128  # bytes before the mark of a DICOM file
_META_GROUP = b"\x02\x00"  # of the elements at the start of a file, which are never deflated
_LONG_LENGTHS = (b"OB", b"OW", b"SQ", b"UN", b"UT")  # kinds of elements whose length has four bytes
MAX_PIXELS = 2**25  # the largest detectors have 29 million; a broken header may claim any number
_MAX_INFLATED = 2**28  # bytes that a deflated file may have
_JPEG2000 = b"\xff\x4f\xff\x51"  # the start of a JPEG 2000 codestream, which may be in boxes of a JP2 file
_MAX_BOXES = 4096  # bytes before it
_MAX_TILES = 2**12  # a decoder allocates kilobytes for each
# Markers at which a frame of JPEG begins, but for those in between that mean something else, and of JPEG-LS.
_JPEG_FRAMES = {*range(0xFFC0, 0xFFD0)} - {0xFFC4, 0xFFC8, 0xFFCC} | {0xFFF7}
_FILL = 0xFFFF  # the byte 0xff may be repeated before a marker
_SCAN = b"\xff\xda"  # the marker of a scan; the data of JPEG, JPEG-LS and JPEG 2000 cannot contain it
# Progressive files have about ten scans. A decoder goes over the whole image for each, though it may have a few bytes.
MAX_SCANS = 100
_ELEMENTS = [
    "TransferSyntaxUID",
    "Rows",
    "Columns",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "PlanarConfiguration",
    "NumberOfFrames",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "PixelPaddingValue",
    "PixelPaddingRangeLimit",
    "RescaleSlope",
    "RescaleIntercept",
    "ModalityLUTSequence",
    "WindowCenter",
    "WindowWidth",
    "VOILUTFunction",
    "VOILUTSequence",
    "PixelData",
]


def is_dicom(path: Path) -> bool:
    """Whether a file has DICOM's mark, or else its suffix `.dcm`."""
    with path.open("rb") as file:
        return file.read(_PREAMBLE + 4)[_PREAMBLE:] == b"DICM" or path.suffix.lower() == ".dcm"


def read_dicom(path: Path) -> np.ndarray:
    """Reads one grey image.

    Returns:
      float64 [height, width], more is brighter, in the units of the file's last step.

    Raises:
      UserError: pydicom is not installed; the file is broken, has no pixels, several frames or colours, more than 2^25
        pixels, more than 100 scans or nothing but padding, or is compressed in a way that no installed decoder reads.
    """
    with _one_sentence(path):
        dataset = _dataset(path)
        _size(dataset, path)
        return _displayed(dataset, _stored(dataset, path), path)


def dicom_width_height(path: Path) -> tuple[int, int]:
    """Size of a grey image in pixels, from its header.

    Raises:
      UserError: as `read_dicom`, but for the pixels themselves.
    """
    with _one_sentence(path):
        return _size(_dataset(path), path)


@contextlib.contextmanager
def _one_sentence(path: Path) -> Iterator[None]:
    """Turns whatever pydicom and the decoders raise into a sentence that quotes nothing of the file."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        kind = type(error).__name__
        raise UserError(
            f"image {path} is DICOM that cannot be read ({kind}): replace the file or leave the study out"
        ) from None


def _dataset(path: Path) -> Any:
    try:
        import pydicom
    except ImportError:
        raise UserError(f"image {path} is DICOM: pip install -e '.[dicom]' to read it") from None
    # Its warnings quote values of the header.
    warnings.filterwarnings("ignore", module="pydicom")
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)
    # From memory: what a broken length says is there is not allocated.
    content = path.read_bytes()
    _refuse_inflated(content, path)
    dataset = pydicom.dcmread(io.BytesIO(content), specific_tags=list(_ELEMENTS), force=True)
    for element in list(dataset):
        if element.is_empty:
            del dataset[element.tag]
    return dataset


def _refuse_inflated(content: bytes, path: Path) -> None:
    """Refuses a deflated file that would inflate to any size, which pydicom does at once."""
    from pydicom.filereader import read_file_meta_info
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    if content[_PREAMBLE : _PREAMBLE + 4] != b"DICM":
        return
    meta = read_file_meta_info(path)
    if meta.get("TransferSyntaxUID") != DeflatedExplicitVRLittleEndian:
        return
    deflated = content[_end_of_meta(content) :]
    if len(zlib.decompressobj(-zlib.MAX_WBITS).decompress(deflated, _MAX_INFLATED)) == _MAX_INFLATED:
        raise UserError(f"image {path} is DICOM that inflates to more than {_MAX_INFLATED} bytes: leave the study out")


def _end_of_meta(content: bytes) -> int:
    """Where the elements about the file itself end; some files lack the one that says it."""
    at = _PREAMBLE + 4
    while content[at : at + 2] == _META_GROUP:
        if content[at + 4 : at + 6] in _LONG_LENGTHS:
            at += 12 + int.from_bytes(content[at + 8 : at + 12], "little")
        else:
            at += 8 + int.from_bytes(content[at + 6 : at + 8], "little")
    return at


def _size(dataset: Any, path: Path) -> tuple[int, int]:
    """Columns and rows, of an image that is one grey frame."""
    if "PixelData" not in dataset:
        raise UserError(f"image {path} is DICOM without pixels: give a file with an image")
    if int(dataset.get("NumberOfFrames", 1)) != 1:
        raise UserError(f"image {path} is DICOM of several frames: save the one to be read as a separate file")
    if dataset.SamplesPerPixel != 1 or not str(dataset.PhotometricInterpretation).startswith("MONOCHROME"):
        raise UserError(f"image {path} is DICOM in colour: give a grey image, MONOCHROME1 or MONOCHROME2")
    width, height = int(dataset.Columns), int(dataset.Rows)
    if min(width, height) < 1 or width * height > MAX_PIXELS:
        raise UserError(f"image {path} is DICOM of {width} x {height} pixels: give one of 1 to {MAX_PIXELS} pixels")
    return width, height


def _stored(dataset: Any, path: Path) -> np.ndarray:
    """The stored values, decompressed: integers [height, width]."""
    from pydicom.encaps import generate_frames
    from pydicom.uid import JPEGTransferSyntaxes, RLELossless, UID_dictionary

    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax.is_encapsulated and syntax != RLELossless:
        stream = next(generate_frames(dataset.PixelData, number_of_frames=1))
        if stream_size(stream) != (dataset.Columns, dataset.Rows, 1):
            raise UserError(
                f"image {path} is DICOM whose compressed pixels do not have the size that its header says: replace the "
                "file or leave the study out"
            )
        if has_too_many_scans(stream):
            raise UserError(
                f"image {path} is DICOM whose compressed pixels have more than {MAX_SCANS} scans: replace the file or "
                "leave the study out"
            )
    try:
        return dataset.pixel_array
    except Exception:
        if syntax not in UID_dictionary or not syntax.is_compressed:
            raise
        decoder = "pylibjpeg-libjpeg" if syntax in JPEGTransferSyntaxes else "-e '.[dicom]'"
        raise UserError(
            f"image {path} is DICOM in {syntax.name}, which no installed decoder could read: pip install {decoder}, or "
            "replace the file"
        ) from None


def stream_size(stream: bytes) -> tuple[int, int, int] | None:
    """Columns, rows and components that a JPEG, JPEG-LS or JPEG 2000 stream claims to have; None: it has no header.

    Decoders allocate what it claims before they find that the rest is missing.
    """
    at = stream.find(_JPEG2000, 0, _MAX_BOXES)
    if at >= 0:
        _, _, right, bottom, left, top, tile_width, tile_height, _, _, components = struct.unpack_from(
            ">HHIIIIIIIIH", stream, at + len(_JPEG2000)
        )
        tiles = (right // max(tile_width, 1) + 1) * (bottom // max(tile_height, 1) + 1)
        return (right - left, bottom - top, components) if tiles <= _MAX_TILES else None
    at = 2  # after the start of the image, each segment is a marker and its length
    while at + 10 <= len(stream):
        marker, length, _, rows, columns, components = struct.unpack_from(">HHBHHB", stream, at)
        if marker in _JPEG_FRAMES:
            return columns, rows, components
        at += 1 if marker == _FILL else 2 + length
    return None


def has_too_many_scans(stream: bytes) -> bool:
    """Whether a decoder of a JPEG stream would be kept busy by more scans than an image needs."""
    return stream.count(_SCAN) > MAX_SCANS


def _displayed(dataset: Any, stored: np.ndarray, path: Path) -> np.ndarray:
    """Stored values [height, width] -> what is displayed, float64 [height, width]."""
    values = _windowed(dataset, _rescaled(dataset, stored), path).astype(np.float64)
    padding = _padding(dataset, stored)
    if padding.all():
        raise UserError(f"image {path} is DICOM of nothing but padding: replace the file or leave the study out")
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        values = values.max(where=~padding, initial=-np.inf) - values
    values[padding] = values.min(where=~padding, initial=np.inf)
    return values


def _padding(dataset: Any, stored: np.ndarray) -> np.ndarray:
    """Which pixels are outside the image: bool [height, width]."""
    if "PixelPaddingValue" not in dataset:
        return np.zeros(stored.shape, bool)
    value = dataset.PixelPaddingValue
    limit = dataset.get("PixelPaddingRangeLimit", value)
    return (stored >= min(value, limit)) & (stored <= max(value, limit))


def _rescaled(dataset: Any, stored: np.ndarray) -> np.ndarray:
    """Modality LUT, or slope and intercept, or neither."""
    from pydicom.pixels import apply_rescale

    if "ModalityLUTSequence" in dataset:
        return _looked_up(dataset, dataset.ModalityLUTSequence[0], stored)
    return apply_rescale(stored, dataset)


def _windowed(dataset: Any, values: np.ndarray, path: Path) -> np.ndarray:
    """VOI LUT, or window, or neither."""
    from pydicom.pixels import apply_windowing

    if "VOILUTSequence" in dataset:
        return _looked_up(dataset, dataset.VOILUTSequence[0], values)
    if "WindowCenter" not in dataset or "WindowWidth" not in dataset:
        return values
    try:
        return apply_windowing(values, dataset)
    except ValueError:
        raise UserError(
            f"image {path} is DICOM with a window that the standard does not allow: correct its Window Width and VOI "
            "LUT Function, or remove its window"
        ) from None


def _looked_up(dataset: Any, table: Any, values: np.ndarray) -> np.ndarray:
    """Values through a LUT; those before its first and after its last entry become these entries.

    pydicom's own functions wrap around where a value is larger than the type of the table's entries.
    """
    entries, first, _ = table.LUTDescriptor
    entries = entries or 2**16  # 0 stands for the one number that 16 bits cannot hold
    data = table.LUTData
    if isinstance(data, bytes):
        data = np.frombuffer(data, "<u2" if dataset.original_encoding[1] else ">u2")
    index = np.clip(np.floor(values.astype(np.float64) - first), 0, entries - 1).astype(np.int64)
    return np.asarray(data, np.float64)[index]

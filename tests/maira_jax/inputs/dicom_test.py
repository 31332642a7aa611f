"""DICOM: pydicom's samples against its own steps, made files against the standard's formulas, and broken files."""

import io
import random
import re
import resource
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pydicom
import pydicom.data
import pytest
from PIL import Image
from pydicom.pixels import apply_modality_lut, apply_voi_lut
from pydicom.uid import DeflatedExplicitVRLittleEndian, JPEG2000Lossless, JPEGBaseline8Bit, JPEGLSLossless, RLELossless

from maira_jax.errors import UserError
from maira_jax.inputs import dicom
from maira_jax.inputs.dicom import dicom_width_height, is_dicom, read_dicom, stream_size
from maira_jax.inputs.image import read_grey, stretch, width_height
from tests.helpers.dicom_file import lut, write_dicom

SAMPLES = Path(pydicom.data.__file__).parent / "test_files"
RAMP = np.arange(4096, dtype=np.uint16).reshape(64, 64)
SIGNED = (RAMP.astype(np.int32) - 2048).astype(np.int16)


def samples() -> list[Path]:
    """Those of pydicom's own files that are DICOM by mark or suffix; none is downloaded."""
    return [path for path in sorted(SAMPLES.rglob("*")) if path.is_file() and is_dicom(path)]


def by_pydicom(path: Path) -> np.ndarray | None:
    """One grey frame as pydicom's functions make it, padding included; None: pydicom finds no such thing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            dataset = pydicom.dcmread(path, force=True)
            stored = dataset.pixel_array
        except Exception:  # of many kinds
            return None
        if stored.ndim != 2 or not dataset.PhotometricInterpretation.startswith("MONOCHROME"):
            return None
        values = apply_voi_lut(apply_modality_lut(stored, dataset), dataset).astype(np.float64)
    shown = stored != dataset.get("PixelPaddingValue", np.inf)
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        values = values[shown].max() - values
    return np.where(shown, values, values[shown].min())


def test_pydicoms_samples_are_read_as_pydicom_reads_them():
    read = 0
    for path in samples():
        wanted = by_pydicom(path)
        if wanted is None:
            with pytest.raises(UserError, match=re.escape(f"image {path} is DICOM")):
                read_dicom(path)
            continue
        np.testing.assert_array_equal(read_dicom(path), wanted, err_msg=str(path))
        assert dicom_width_height(path) == wanted.shape[::-1]
        read += 1
    assert read >= 50


def test_stored_values_of_any_sign_and_byte_order(tmp_path):
    for name, stored in (("unsigned", RAMP), ("signed", SIGNED)):
        for big_endian in (False, True):
            path = write_dicom(tmp_path / f"{name}.dcm", stored, big_endian=big_endian)
            np.testing.assert_array_equal(read_dicom(path), stored)
    deep = (RAMP * 16).astype(np.uint16)
    np.testing.assert_array_equal(read_dicom(write_dicom(tmp_path / "a", deep, bits=16)), deep)


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless, JPEGLSLossless])
@pytest.mark.parametrize("stored", [RAMP, SIGNED], ids=["unsigned", "signed"])
def test_what_is_compressed_without_loss_is_the_same(tmp_path, syntax, stored):
    dataset = pydicom.dcmread(write_dicom(tmp_path / "a.dcm", stored, PhotometricInterpretation="MONOCHROME1"))
    wanted = read_dicom(tmp_path / "a.dcm")
    dataset.compress(syntax)
    dataset.save_as(tmp_path / "b.dcm")
    np.testing.assert_array_equal(read_dicom(tmp_path / "b.dcm"), wanted)


def linear(x, center, width, low, high):
    """PS3.3 C.11.2.1.2.1."""
    if x <= center - 0.5 - (width - 1) / 2:
        return low
    if x > center - 0.5 + (width - 1) / 2:
        return high
    return ((x - (center - 0.5)) / (width - 1) + 0.5) * (high - low) + low


def linear_exact(x, center, width, low, high):
    """PS3.3 C.11.2.1.3.2."""
    if x <= center - width / 2:
        return low
    if x > center + width / 2:
        return high
    return (x - center) / width * (high - low) + (high + low) / 2


def sigmoid(x, center, width, low, high):
    """PS3.3 C.11.2.1.3.1."""
    return (high - low) / (1 + np.exp(-4 * (x - center) / width)) + low


@pytest.mark.parametrize("function", [linear, linear_exact, sigmoid])
def test_rescale_then_the_first_window(tmp_path, function):
    path = write_dicom(
        tmp_path / "a.dcm",
        SIGNED,
        RescaleSlope=0.5,
        RescaleIntercept=-10,
        WindowCenter=[40, 300],
        WindowWidth=[80.5, 20],
        VOILUTFunction=function.__name__.upper(),
    )
    low, high = -2048 * 0.5 - 10, 2047 * 0.5 - 10
    wanted = [function(x * 0.5 - 10, 40, 80.5, low, high) for x in SIGNED.ravel().tolist()]
    np.testing.assert_allclose(read_dicom(path).ravel(), wanted, rtol=1e-12, atol=1e-9)


def test_look_up_tables(tmp_path):
    """The ends of a table go on outside it, and a VOI LUT is taken before a window."""
    doubled = lut([2 * i for i in range(1000)], -500, 16)
    path = write_dicom(tmp_path / "a.dcm", SIGNED, ModalityLUTSequence=doubled)
    wanted = 2 * np.clip(SIGNED.astype(int) + 500, 0, 999)
    np.testing.assert_array_equal(read_dicom(path), wanted)
    # 12 bits in and 8 bits out.
    squares = lut([(i // 16) ** 2 // 255 for i in range(4096)], 0, 8)
    path = write_dicom(tmp_path / "b.dcm", RAMP, VOILUTSequence=squares, WindowCenter=10, WindowWidth=5)
    np.testing.assert_array_equal(read_dicom(path), (RAMP.astype(int) // 16) ** 2 // 255)
    # Both, one after the other, in every form that a table may have.
    for big_endian, order in ((False, ""), (True, ""), (False, "<"), (True, ">")):
        halved = lut([i // 2 for i in range(2000)], 0, 10, order)
        path = write_dicom(
            tmp_path / "c.dcm", SIGNED, ModalityLUTSequence=doubled, VOILUTSequence=halved, big_endian=big_endian
        )
        np.testing.assert_array_equal(read_dicom(path), wanted // 2)


def test_look_up_tables_as_pydicom_where_it_does_not_wrap(tmp_path):
    """pydicom's index has the type of the entries: with 8 bits it wraps around at 256, which is its fault."""
    entries = np.random.default_rng(0).integers(0, 1024, 3000).tolist()
    path = write_dicom(tmp_path / "a.dcm", RAMP, VOILUTSequence=lut(entries, 700, 10))
    np.testing.assert_array_equal(read_dicom(path), apply_voi_lut(RAMP, pydicom.dcmread(path)))


def test_padding_is_background(tmp_path):
    stored = SIGNED.copy()
    stored[:8], stored[8:10] = -2000, -1999
    shown = np.arange(64) >= 10
    path = write_dicom(
        tmp_path / "a.dcm",
        stored,
        PhotometricInterpretation="MONOCHROME1",
        PixelPaddingValue=-1995,
        PixelPaddingRangeLimit=-2000,
    )
    values = read_dicom(path)
    inside = stored[shown].astype(int)
    np.testing.assert_array_equal(values[shown], inside.max() - inside)
    np.testing.assert_array_equal(values[~shown], 0)
    one = write_dicom(tmp_path / "b.dcm", stored, PixelPaddingValue=-2000)
    np.testing.assert_array_equal(read_dicom(one)[:8], stored[8:].min())
    with pytest.raises(UserError, match=r"c\.dcm is DICOM of nothing but padding"):
        read_dicom(write_dicom(tmp_path / "c.dcm", RAMP * 0 + 5, PixelPaddingValue=5))


def test_empty_elements_are_absent(tmp_path):
    empty = dict.fromkeys(("RescaleSlope", "RescaleIntercept", "WindowCenter", "WindowWidth", "PixelPaddingValue"))
    np.testing.assert_array_equal(read_dicom(write_dicom(tmp_path / "a.dcm", RAMP, VOILUTFunction="", **empty)), RAMP)


def test_every_entry_of_the_image_module_reads_it(tmp_path):
    path = write_dicom(tmp_path / "no_suffix", RAMP[:32], PhotometricInterpretation="MONOCHROME1")
    np.testing.assert_array_equal(stretch(read_grey(path)), stretch(4095 - RAMP[:32]))
    assert width_height(path) == (64, 32)


@pytest.mark.parametrize(
    ("elements", "says"),
    [
        ({"NumberOfFrames": 2}, "of several frames"),
        ({"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"}, "in colour"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "in colour"),
        ({"Rows": 60000, "Columns": 60000}, "60000 x 60000 pixels: give one of 1 to 33554432"),
        ({"Rows": 65}, "cannot be read"),
        ({"WindowCenter": 5, "WindowWidth": 0}, "a window that the standard does not allow"),
        (
            {"WindowCenter": 5, "WindowWidth": 9, "VOILUTFunction": "SECRET PATIENT"},
            "a window that the standard does not",
        ),
        ({"VOILUTSequence": lut([1, 2], 0, 8)}, "constant|cannot be read"),
    ],
)
def test_what_is_no_grey_image(tmp_path, elements, says):
    path = write_dicom(tmp_path / "a.dcm", RAMP, **elements)
    if "VOILUTSequence" in elements:
        dataset = pydicom.dcmread(path)
        dataset.VOILUTSequence[0].LUTDescriptor = [900, 0, 8]  # more entries than there are
        dataset.save_as(path)
    with pytest.raises(UserError, match=says) as error:
        read_grey(path)
    assert str(path) in str(error.value) and "SECRET" not in str(error.value).upper()


def test_without_pixels_without_a_syntax_and_without_pydicom(tmp_path, monkeypatch):
    dataset = pydicom.dcmread(write_dicom(tmp_path / "a.dcm", RAMP))
    pixels = dataset.PixelData
    del dataset.PixelData
    dataset.save_as(tmp_path / "b.dcm")
    with pytest.raises(UserError, match=r"b\.dcm is DICOM without pixels"):
        width_height(tmp_path / "b.dcm")
    dataset.file_meta.TransferSyntaxUID = JPEG2000Lossless
    dataset.add_new("PixelData", "OB", pydicom.encaps.encapsulate([pixels]))
    dataset["PixelData"].is_undefined_length = True
    dataset.save_as(tmp_path / "c.dcm")
    with pytest.raises(UserError, match="compressed pixels do not have the size"):
        read_grey(tmp_path / "c.dcm")
    (tmp_path / "d.dcm").write_bytes(b"no mark, and nothing that follows it")
    with pytest.raises(UserError, match=r"d\.dcm is DICOM without pixels"):
        read_grey(tmp_path / "d.dcm")
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(UserError, match=r"a\.dcm is DICOM: pip install -e '\.\[dicom\]' to read it"):
        read_grey(tmp_path / "a.dcm")


@pytest.mark.parametrize("form", ["JPEG", "JPEG2000"])
def test_what_a_stream_claims(form):
    for mode, components in (("L", 1), ("RGB", 3)):
        written = io.BytesIO()
        Image.new(mode, (30, 20), 9 if mode == "L" else (1, 2, 3)).save(written, form)
        assert stream_size(written.getvalue()) == (30, 20, components)
        filled = written.getvalue().replace(b"\xff\xc0", b"\xff\xff\xff\xc0")
        assert stream_size(filled) == (30, 20, components)
        assert stream_size(written.getvalue()[:20]) is None


def test_streams_of_more_scans_than_an_image_needs_are_refused(tmp_path):
    written = io.BytesIO()
    Image.fromarray(RAMP.astype(np.uint8)).save(written, "JPEG", progressive=True)
    stream = written.getvalue()
    last, n_scans = stream.rindex(b"\xff\xda"), stream.count(b"\xff\xda")
    dataset = pydicom.dcmread(write_dicom(tmp_path / "a.dcm", RAMP, BitsAllocated=8, BitsStored=8, HighBit=7))
    dataset.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    for name, n in (("few", 100), ("many", 101)):
        repeated = stream[:last] + stream[last:-2] * (n + 1 - n_scans) + stream[-2:]
        dataset.PixelData = pydicom.encaps.encapsulate([repeated])
        dataset.save_as(tmp_path / f"{name}.dcm")
    assert read_dicom(tmp_path / "few.dcm").shape == RAMP.shape
    with pytest.raises(UserError, match=r"many\.dcm is DICOM whose compressed pixels have more than 100 scans"):
        read_dicom(tmp_path / "many.dcm")


def test_a_file_that_needs_another_decoder_names_it(tmp_path):
    with pytest.raises(UserError, match=r"JPEG Extended.*no installed decoder.*pip install pylibjpeg-libjpeg"):
        read_dicom(SAMPLES / "JPEG-lossy.dcm")


def test_a_deflated_file_that_would_fill_memory_is_refused(tmp_path, monkeypatch):
    dataset = pydicom.dcmread(write_dicom(tmp_path / "a.dcm", np.zeros((2048, 2048), np.uint16)))
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    dataset.save_as(tmp_path / "b.dcm")
    assert (tmp_path / "b.dcm").stat().st_size < 2**20 and read_dicom(tmp_path / "b.dcm").shape == (2048, 2048)
    monkeypatch.setattr(dicom, "_MAX_INFLATED", 2**22)
    with pytest.raises(UserError, match="b.dcm is DICOM that inflates to more than"):
        read_dicom(tmp_path / "b.dcm")


def test_nothing_of_the_header_is_printed(tmp_path):
    """In a process of its own, where no one catches warnings or logs; and the causes of a sentence are hidden, too."""
    path = write_dicom(tmp_path / "a.dcm", RAMP)
    broken = path.read_bytes()
    for name in (b"\x28\x00\x10\x00US", b"\x28\x00\x00\x01US"):  # Rows, BitsAllocated
        at = broken.index(name)
        (tmp_path / f"{at}.dcm").write_bytes(broken[:at] + name[:4] + b"IS\x06\x00" + b"Secret" + broken[at + 10 :])
    program = (
        "import sys, traceback; from pathlib import Path; from maira_jax.inputs.image import read_grey\n"
        "for path in Path(sys.argv[1]).iterdir():\n"
        "    try: read_grey(path)\n"
        "    except Exception: traceback.print_exc()\n"
    )
    done = subprocess.run([sys.executable, "-c", program, tmp_path], capture_output=True, text=True, check=True)
    assert done.stderr.count("UserError: image") == 2
    assert "Secret" not in done.stderr + done.stdout and "1901" not in done.stderr


_TAGS = [
    pydicom.tag.Tag(keyword).group.to_bytes(2, "little") + pydicom.tag.Tag(keyword).element.to_bytes(2, "little")
    for keyword in (
        "TransferSyntaxUID", "SamplesPerPixel", "PhotometricInterpretation", "NumberOfFrames", "Rows", "Columns",
        "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PixelPaddingValue", "WindowCenter",
        "WindowWidth", "RescaleIntercept", "RescaleSlope", "PixelData",
    )
]  # fmt: skip


def mutated(data: bytes, rng: random.Random) -> bytes:
    """A file with flipped bits, cut off, with two tags swapped, or with other bytes behind a tag."""
    changed, kind = bytearray(data), rng.randrange(5)
    if kind == 0:
        for _ in range(rng.choice((1, 3, 20))):
            changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif kind == 1:
        del changed[rng.randrange(len(data)) :]
    elif kind == 2:
        one, other = rng.sample(_TAGS, 2)
        return data.replace(one, b"swap").replace(other, one).replace(b"swap", other)
    else:  # the length or value of an element, or the header of the compressed pixels
        at = max(data.find(rng.choice(_TAGS) if kind == 3 else _TAGS[-1]), 0)
        for _ in range(rng.choice((1, 2, 4))):
            place = min(at + rng.randrange(4, 14 if kind == 3 else 160), len(data) - 1)
            changed[place] = rng.choice((0, 255, rng.randrange(256)))
    return bytes(changed)


def read_mutated(folder: Path, seed: int, n: int) -> tuple[int, int]:
    """How many of n mutated files are read, and how many give a sentence; anything else is raised."""
    rng, path = random.Random(seed), folder / "mutated.dcm"
    whole = [sample for sample in samples() if sample.stat().st_size < 600_000 and by_pydicom(sample) is not None]
    compressed = [path for path in whole if b"1.2.840.10008.1.2.4" in path.read_bytes()]
    read = 0
    for _ in range(n):
        path.write_bytes(mutated(rng.choice(rng.choice((whole, compressed))).read_bytes(), rng))
        try:
            values = read_dicom(path)
        except UserError as error:
            assert str(error).startswith(f"image {path} is DICOM") and "\n" not in str(error)
        else:
            assert values.ndim == 2 and values.dtype == np.float64
            read += 1
    return read, n - read


@pytest.mark.parametrize(("seed", "n"), [(0, 100), pytest.param(1, 500, marks=pytest.mark.drill)], ids=["some", "many"])
def test_mutated_files_are_read_or_give_a_sentence(tmp_path, seed, n):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    read, refused = read_mutated(tmp_path, seed, n)
    assert read > n / 10 and refused > n / 4
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20  # KiB

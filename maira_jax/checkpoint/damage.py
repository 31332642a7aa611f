"""Signs that a checkpoint's files are not what their author wrote.

Safetensors files have no checksum. Where a digest of a file is known (`known_digests`), a single wrong bit is found.
Where none is, only values that no trained model has give damage away (`sign_of_damage`): a byte replaced at random is
found in about one case of ten, so that a hundred of them are missed once in 100,000; a page of zeros in a kernel or a
token table is found. What cannot be found without a digest is damage that leaves plausible values: lowest bits, or one
part of the file copied over another.
"""

import re
from pathlib import Path

import numpy as np

from maira_jax.checkpoint.layout import Entry
from maira_jax.errors import UserError
from maira_jax.run import files

DIGESTS = "SHA256SUMS"
_SHA256 = re.compile("[0-9a-f]{64}")
# Of float16, in which the language model under MAIRA-2 (Vicuna) was published.
_LARGEST = 65504.0
_RUN = 512  # values; as many zeros in a row are a hole, half a page of a float32 file
_LEAST_RUN = 64
_BLOCK = 1 << 18  # values that are checked together, so that they stay in the cache
_TOKEN_TABLES = (("language", "embed"), ("language", "lm_head"))


def known_digests(directory: Path) -> dict[str, tuple[str, str]]:
    """SHA-256 of files of a checkpoint, where something in the folder tells it.

    Sources, the last one wins: the cache of huggingface_hub, whose files are named by their digest; the records of its
    downloads into a folder; `SHA256SUMS`, as the program sha256sum writes it.

    Returns:
      File name -> digest and the place that tells it.

    Raises:
      UserError: a line of SHA256SUMS cannot be read.
    """
    found: dict[str, tuple[str, str]] = {}
    for path in directory.iterdir():
        blob = path.resolve()
        if blob.parent.name == "blobs" and _SHA256.fullmatch(blob.name):
            found[path.name] = (blob.name, "the cache's name for it")
    for path in (directory / ".cache" / "huggingface" / "download").glob("*.metadata"):
        lines = path.read_text().splitlines()
        if len(lines) > 1 and _SHA256.fullmatch(lines[1]):
            found[path.name.removesuffix(".metadata")] = (lines[1], str(path))
    sums = directory / DIGESTS
    for number, line in enumerate(sums.read_text().splitlines() if sums.is_file() else (), 1):
        digest, _, name = line.partition(" ")
        if not _SHA256.fullmatch(digest.lower()) or not name.strip():
            raise UserError(f"{sums}, line {number}, is not a SHA-256 and a file name: write it with sha256sum")
        found[name.strip().removeprefix("*")] = (digest.lower(), str(sums))
    return found


def check_digest(path: Path, digest: str, known: dict[str, tuple[str, str]]) -> bool:
    """Whether a digest of the file was known; it is refused if it is another one.

    Raises:
      UserError: the digests differ.
    """
    if path.name not in known:
        return False
    wanted, origin = known[path.name]
    if digest != wanted:
        raise UserError(
            f"{path} is damaged or of another version: its SHA-256 is {digest}, but {origin} says {wanted}: "
            "download the file again"
        )
    return True


def sign_of_damage(entry: Entry, tensor: np.ndarray, trusted: bool) -> str | None:
    """What is wrong with a tensor's values, or None.

    Args:
      entry: what the tensor is.
      tensor: of a floating-point type, in the shape of the checkpoint.
      trusted: its file has a known digest, so that only values that are not numbers are refused here.
    """
    unsigned = np.dtype(f"u{tensor.dtype.itemsize}")
    # Without their sign bit, floating-point numbers are ordered as integers, infinity and NaN above all.
    magnitude = unsigned.type(np.iinfo(unsigned).max >> 1)
    infinity = np.array(np.inf, tensor.dtype).view(unsigned)
    limit = infinity - 1 if trusted else np.array(_LARGEST, tensor.dtype).view(unsigned)
    rows = tensor.reshape(len(tensor), -1).view(unsigned)
    run = _run_length(rows.shape[1])
    kernel = entry.kind in ("linear", "conv")
    for start in range(0, len(rows), step := max(1, _BLOCK // rows.shape[1])):
        part = rows[start : start + step] & magnitude
        largest = part.reshape(len(part), -1, run).max(axis=2)  # [rows, runs]
        if (top := largest.max()) > limit:
            return f"holds {'a value that is no number' if top >= infinity else 'values above 65504'}"
        if trusted or not (kernel or entry.path in _TOKEN_TABLES):
            continue
        hole = (largest == 0).any(axis=1)
        if entry.path in _TOKEN_TABLES:  # a token that was never trained may have no values at all
            hole &= (largest != 0).any(axis=1)
        if hole.any():
            return f"is empty in row {start + int(hole.argmax())}, as in an unfinished download"
    return None


def _run_length(width: int) -> int:
    """The largest part of a row, not above `_RUN`, that it is a multiple of; the whole row if there is none."""
    return next((run for run in range(_RUN, _LEAST_RUN - 1, -1) if width % run == 0), width)


def sha256_of(directory: Path, names: list[str], known: dict[str, tuple[str, str]]) -> dict[str, str]:
    """Digests of small files, each refused if another one is known.

    Raises:
      UserError: the digests differ.
    """
    digests = {name: files.sha256(directory / name) for name in names}
    for name, digest in digests.items():
        check_digest(directory / name, digest, known)
    return digests

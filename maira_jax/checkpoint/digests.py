"""SHA-256 of a checkpoint's files, where something in their folder gives it.

Safetensors files have no checksum of their own: damage that leaves finite values is found by a digest alone.
"""

import re
from pathlib import Path

from maira_jax.errors import UserError
from maira_jax.run import files

DIGESTS = "SHA256SUMS"
_SHA256 = re.compile("[0-9a-f]{64}")


def known_digests(directory: Path) -> dict[str, tuple[str, str]]:
    """The digests of files of a checkpoint that something in the folder gives.

    Sources, the last one wins: the cache of huggingface_hub, whose files are named by their digest; the records of its
    downloads into a folder; `SHA256SUMS`, as the program sha256sum writes it.

    Returns:
      File name -> digest and the place that gives it.

    Raises:
      UserError: one of these files is no text, or a line of SHA256SUMS cannot be read.
    """
    found: dict[str, tuple[str, str]] = {}
    for path in directory.iterdir():
        blob = path.resolve()
        if blob.parent.name == "blobs" and _SHA256.fullmatch(blob.name):
            found[path.name] = (blob.name, "the name of the file in the cache")
    for path in (directory / ".cache" / "huggingface" / "download").glob("*.metadata"):
        lines = files.read_text(path).splitlines()
        if len(lines) > 1 and _SHA256.fullmatch(lines[1]):
            found[path.name.removesuffix(".metadata")] = (lines[1], str(path))
    sums = directory / DIGESTS
    for number, line in enumerate(files.read_text(sums).splitlines() if sums.is_file() else (), 1):
        digest, _, name = line.partition(" ")
        if not _SHA256.fullmatch(digest.lower()) or not name.strip():
            raise UserError(f"{sums}, line {number}, is not a SHA-256 and a file name: write it with sha256sum")
        found[name.strip().removeprefix("*")] = (digest.lower(), str(sums))
    return found


def check_digest(path: Path, digest: str, known: dict[str, tuple[str, str]]) -> bool:
    """Compares the digest of a file with the known one; returns whether there is one.

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


def sha256_of(directory: Path, names: list[str], known: dict[str, tuple[str, str]]) -> dict[str, str]:
    """Digests of small files, compared with the known ones.

    Raises:
      UserError: the digests differ.
    """
    digests = {name: files.sha256(directory / name) for name in names}
    for name, digest in digests.items():
        check_digest(directory / name, digest, known)
    return digests

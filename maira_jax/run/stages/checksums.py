"""Checksums of the files that a stage leaves, by which whoever reads them sees that nothing was changed or lost."""

import hashlib
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from maira_jax.errors import UserError
from maira_jax.run import files

ARRAY = "zarr.json"  # of a folder whose chunks have checksums of their own, which TensorStore checks as it reads
_END = 2**12  # bytes
_ALL, _ENDS = "sha256", "sha256_of_ends"


def of_folder(folder: Path, apart: Collection[str]) -> dict[str, dict[str, Any]]:
    """The size and SHA-256 of each file of a stage, by its path in the stage's folder.

    Of the files of an array, which may be terabytes, the SHA-256 of their ends: their chunks' own checksums say that
    none has changed, and the ends that none has another one's place.

    Args:
      folder: the stage's folder. Hidden files, and folders inside of it that are stages of their own, are left out.
      apart: names of files and folders that are no part of the result.
    """
    found = {}
    for path, in_array in _files(folder, apart):
        kind, checksum = (_ENDS, _sha256_of_ends(path)) if in_array else (_ALL, files.sha256(path))
        found[path.relative_to(folder).as_posix()] = {"bytes": path.stat().st_size, kind: checksum}
    return found


def problems(folder: Path, recorded: Mapping[str, Mapping[str, Any]], may_be_absent: bool = False) -> list[str]:
    """What is wrong with the files of a stage, a clause for each.

    Args:
      folder: the stage's folder.
      recorded: what `of_folder` gave when the stage was finished.
      may_be_absent: whether files may be elsewhere, as where the folder stands for one in a bucket.
    """
    found = []
    for name, wanted in recorded.items():
        path = folder / name
        if not files.is_file(path):
            if not may_be_absent:
                found.append(f"{path} is missing")
        elif path.stat().st_size != wanted["bytes"]:
            found.append(f"{path} has {path.stat().st_size:,} bytes instead of {wanted['bytes']:,}")
        elif _is_changed(path, wanted):
            found.append(f"{path} is not what the stage wrote: its SHA-256 has changed")
    return found


def _files(folder: Path, apart: Collection[str], in_array: bool = False) -> Iterator[tuple[Path, bool]]:
    """The files of a stage, and whether each is one of an array's, other than its description."""
    inside = sorted(folder.iterdir())
    in_array = in_array or any(path.name == ARRAY for path in inside)
    for path in inside:
        if path.name.startswith(".") or path.name in apart:
            continue
        if not path.is_dir():
            yield path, in_array and path.name != ARRAY
        elif not any((path / name).is_file() for name in apart):
            yield from _files(path, apart, in_array)


def _is_changed(path: Path, wanted: Mapping[str, Any]) -> bool:
    digests = ((_ALL, files.sha256), (_ENDS, _sha256_of_ends))
    return any(wanted.get(kind) is not None and wanted[kind] != digest(path) for kind, digest in digests)


def _sha256_of_ends(path: Path) -> str:
    """The hex SHA-256 of a file's first and last 4 KiB."""
    with path.open("rb") as file:
        ends = file.read(_END)
        file.seek(max(0, path.stat().st_size - _END))
        return hashlib.sha256(ends + file.read(_END)).hexdigest()


def sign(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest with a checksum of itself."""
    plain = {key: value for key, value in manifest.items() if key != "checksum"}
    return plain | {"checksum": files.digest(plain)}


def check_signed(path: Path, manifest: Mapping[str, Any]) -> None:
    """Compares a manifest with its checksum.

    Raises:
      UserError: they differ.
    """
    if sign(manifest)["checksum"] != manifest.get("checksum"):
        raise UserError(
            f"{path} is not what a stage wrote: restore it, or delete {path.parent} and run that stage again"
        )

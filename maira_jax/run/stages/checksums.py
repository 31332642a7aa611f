"""Checksums of the files that a stage leaves, by which whoever reads them sees that nothing was changed or lost."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from maira_jax.errors import UserError
from maira_jax.run import files

ARRAY = "zarr.json"  # of a folder whose chunks have checksums of their own, which TensorStore checks as it reads


def of_folder(folder: Path, apart: Collection[str]) -> dict[str, dict[str, Any]]:
    """The size and SHA-256 of each file of a stage, by its path in the stage's folder; of an array's files the size.

    Args:
      folder: the stage's folder. Hidden files, and folders inside of it that are stages of their own, are left out.
      apart: names of files and folders that are no part of the result.
    """
    found: dict[str, dict[str, Any]] = {}

    def walk(place: Path, in_array: bool) -> None:
        inside = sorted(place.iterdir())
        in_array = in_array or any(path.name == ARRAY for path in inside)
        for path in inside:
            if path.name.startswith(".") or path.name in apart:
                continue
            if path.is_dir():
                if not any((path / name).is_file() for name in apart):
                    walk(path, in_array)
                continue
            checksum = None if in_array and path.name != ARRAY else files.sha256(path)
            found[path.relative_to(folder).as_posix()] = {"bytes": path.stat().st_size, "sha256": checksum}

    walk(folder, False)
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
        if not path.is_file():
            if not may_be_absent:
                found.append(f"{path} is missing")
        elif path.stat().st_size != wanted["bytes"]:
            found.append(f"{path} has {path.stat().st_size:,} bytes instead of {wanted['bytes']:,}")
        elif wanted["sha256"] is not None and files.sha256(path) != wanted["sha256"]:
            found.append(f"{path} is not what the stage wrote: its SHA-256 has changed")
    return found


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

"""Files that are either whole or absent."""

import contextlib
import hashlib
import json
import os
import shutil
import stat
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError

from maira_jax.errors import UserError
from maira_jax.run import permissions, storage

_MAX_DEPTH = 64  # of JSON
# Bytes of a text, which is read as a whole. The longest are manifests of studies: a million reports.
_MAX_TEXT = 2**30


def remove(path: Path) -> None:
    """Removes a file or a folder, if there is one, here and in the bucket that `path` may stand for."""
    _remove_here(path)
    storage.forget(path)


def remove_leftovers(folder: Path, pattern: str = "**/.*.tmp") -> None:
    """Removes the temporary files and folders that killed commands left; none may be at work there."""
    for leftover in list(folder.glob(pattern)):
        remove(leftover)


def _remove_here(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yields a temporary path next to `path` (for a file or a folder), which replaces it at the end.

    Nothing is left at `path` when the body raises. A full disk is reported as a `UserError`. Where `path` stands for
    one in a bucket, it is then sent there.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")  # processes of several hosts have one number
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_here(temporary)
        yield temporary
        if temporary.is_file():
            temporary.chmod(permissions.of_file(path))  # some libraries create files that only their owner can read
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
        if path.is_dir():
            remove(path)
        os.replace(temporary, path)
        storage.send_written(path)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"could not write {path} ({reason}): free space or choose another folder") from error
    finally:
        with contextlib.suppress(OSError):  # where nothing could be written, there is nothing to remove
            _remove_here(temporary)


def array_on_disk(path: Path, dtype: npt.DTypeLike, shape: tuple[int, ...]) -> np.memmap:
    """Zeros in a new .npy file, as a map of it.

    Their space on the disk is reserved at once: a process that writes to a map of a full disk is killed.

    Raises:
      UserError: the disk is full; nothing is left.
    """
    try:
        array = np.lib.format.open_memmap(path, "w+", dtype, shape)
        if hasattr(os, "posix_fallocate"):  # not on macOS
            with path.open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    except OSError as error:
        with contextlib.suppress(OSError):
            remove(path)
        raise UserError(
            f"could not write {path} ({error.strerror or error}): free space or choose another folder"
        ) from error
    return array


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as indented JSON, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, sort_keys=False, allow_nan=False) + "\n")


def read_text(path: Path) -> str:
    """Reads a file of UTF-8 text.

    Raises:
      UserError: the file is missing, cannot be read, is longer than 1 GiB or holds something else.
    """
    try:
        status = path.stat()
        # A pipe would keep its reader waiting, and a device may have no end.
        if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
            raise UserError(f"{path} cannot be read (it is a device or a pipe): put a file there")
        if status.st_size > _MAX_TEXT:
            raise UserError(f"{path} has {status.st_size} bytes, more than the {_MAX_TEXT} of a text: restore the file")
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist: check the path") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}): check the path") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: save it as UTF-8, or restore the file") from error


def read_json(path: Path) -> Any:
    """Reads a JSON file.

    Raises:
      UserError: the file is missing, cannot be read or is not JSON.
    """
    try:
        return parse_json(read_text(path))
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}): restore the file") from error


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text, which is so flat that whatever walks through it needs no deep stack.

    Raises:
      ValueError: the text is not JSON, or is nested more than 64 times.
    """
    try:
        found = json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    level = [found] if isinstance(found, dict | list) else []
    for _ in range(_MAX_DEPTH):
        if not level:
            return found
        inside = (value.values() if isinstance(value, dict) else value for value in level)
        level = [value for values in inside for value in values if isinstance(value, dict | list)]
    raise ValueError("it is nested too deeply")


def read_object(path: Path) -> dict[str, Any]:
    """Reads a JSON file that holds an object.

    Raises:
      UserError: the file is missing, cannot be read, is not JSON or holds something else.
    """
    found = read_json(path)
    if not isinstance(found, dict):
        raise UserError(f"{path} holds no JSON object: restore the file")
    return found


def is_file(path: Path) -> bool:
    """Whether there is such a file; none has a name that no file can have, as tables that are damaged ask for."""
    try:
        return path.is_file()
    except OSError:  # such as a name that is too long
        return False


def sha256(path: Path) -> str:
    """Hex digest of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content_digest(path: Path) -> str:
    """Hex digest of a file's content, or of the names and contents of all files in a folder.

    Raises:
      UserError: there is nothing at `path`.
    """
    if not path.exists():
        raise UserError(f"{path} does not exist: check the path")
    if path.is_file():
        return sha256(path)
    inside = sorted(part for part in path.rglob("*") if part.is_file())
    return digest({str(part.relative_to(path)): sha256(part) for part in inside})


def digest(value: Any) -> str:
    """Hex digest of a JSON-like value, independent of key order."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()

"""A lock on a folder that several hosts may share, on any file system that can create a file only if there is none, or
in a bucket."""

import contextlib
import functools
import json
import os
import socket
import threading
import time
import uuid
from pathlib import Path
from typing import Any, Protocol

import tensorstore as ts

from maira_jax.errors import UserError, first_line
from maira_jax.run import storage

_REFRESH = 5.0  # seconds between two signs of life of the process that holds a lock
_EXPIRES = 20.0  # seconds without one after which another host takes the lock over
_SETTLES = 0.5  # seconds in which S3 may still take a second command's object for the first


class FolderLock:
    """Keeps other commands out of a folder, by a file next to it that says who works there.

    A lock whose process has ended is taken over: at once where it ran on this host, and on another one when it has
    shown no sign of life for 20 seconds.

    Args:
      folder: the folder; the file is `.NAME.lock`, next to it. In a bucket it is an object.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        path = folder.with_name(f".{folder.name}.lock")
        self._mark: _LockMark = _LockObject(path) if storage.is_remote(path) else _LockFile(path)
        self._owner: dict[str, Any] = {}
        self._released = threading.Event()
        self._thread = threading.Thread()

    def acquire(self) -> None:
        """Takes the lock.

        Raises:
          UserError: another command works in the folder.
          OSError: the lock cannot be written.
        """
        owner = _this_process()
        while not self._mark.create(owner):
            there = self._mark.read()
            if there is None:  # it has just been released
                continue
            if not self._abandoned(there):
                raise UserError(
                    f"another command works in {self._folder} (process {there.get('process')} on {there.get('host')}): "
                    "wait until it has ended"
                )
            self._mark.remove(there)
        self._owner = owner
        self._released.clear()
        self._thread = threading.Thread(target=self._refresh, name="folder-lock", daemon=True)
        self._thread.start()

    def release(self) -> None:
        """Gives the lock back, if it is held."""
        if self._owner:
            self._released.set()
            self._thread.join()
            self._mark.remove(self._owner)
            self._owner = {}

    def _refresh(self) -> None:
        while not self._released.wait(_REFRESH):
            with contextlib.suppress(OSError):
                self._mark.show_life()

    def _abandoned(self, there: dict[str, Any]) -> bool:
        """Whether the process that holds the lock has ended; waits where only time can tell."""
        if there.get("namespace") == _namespace():
            return there.get("started") != _started(there.get("process"))
        seen, until = self._mark.changed(), time.monotonic() + _EXPIRES
        while time.monotonic() < until:
            time.sleep(_EXPIRES / 20)
            if self._mark.changed() != seen:
                return False
        return True


class _LockMark(Protocol):
    """What says who works in a folder."""

    def create(self, owner: dict[str, Any]) -> bool:
        """Writes it if there is none, and tells whether it did."""

    def read(self) -> dict[str, Any] | None:
        """What it says; nothing for one that is just being written or is damaged, None if there is none."""

    def show_life(self) -> None:
        """Changes what `changed` gives, if it is still the one that was created here."""

    def changed(self) -> Any:
        """When or how it was last changed."""

    def remove(self, owner: dict[str, Any]) -> None:
        """Removes it, if it says this."""


class _LockFile:
    def __init__(self, path: Path):
        self._path = path

    def create(self, owner: dict[str, Any]) -> bool:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with self._path.open("x") as file:
                json.dump(owner, file)
        except FileExistsError:
            return False
        except OSError:  # of a full disk
            self._path.unlink(missing_ok=True)
            raise
        return True

    def read(self) -> dict[str, Any] | None:
        return _read(self._path)

    def show_life(self) -> None:
        os.utime(self._path)

    def changed(self) -> int | None:
        try:
            return self._path.stat().st_mtime_ns
        except FileNotFoundError:
            return None

    def remove(self, owner: dict[str, Any]) -> None:
        if self.read() != owner:
            return
        aside = self._path.with_name(f"{self._path.name}.{uuid.uuid4().hex}")
        with contextlib.suppress(FileNotFoundError):  # another command was faster
            os.rename(self._path, aside)
            if _read(aside) == owner:
                aside.unlink()
            else:  # that of a command that was faster, and works now
                os.rename(aside, self._path)


class _LockObject:
    """An object of a bucket, which is written only over the version that was seen before.

    Google's store compares versions as it writes. For S3, TensorStore compares them just before, so a command reads
    back what it has written, when any other one that saw none before must have written too.
    """

    def __init__(self, path: Path):
        self._kvstore, self._key = storage.kvstore(path.parent), path.name
        self._owner: dict[str, Any] = {}
        self._version = b""
        self._signs = 0

    def create(self, owner: dict[str, Any]) -> bool:
        found = self._found()
        if found.state != "missing" or not self._write(json.dumps(owner), found.stamp.generation):
            return False
        time.sleep(_SETTLES)
        self._owner, self._signs = owner, 0
        return self.read() == owner

    def read(self) -> dict[str, Any] | None:
        found = self._found()
        if found.state == "missing":
            return None
        owner = _parsed(found.value)
        owner.pop("signs", None)
        return owner

    def show_life(self) -> None:
        self._signs += 1
        self._write(json.dumps(self._owner | {"signs": self._signs}), self._version)

    def changed(self) -> bytes:
        return self._found().stamp.generation

    def remove(self, owner: dict[str, Any]) -> None:
        version = self.changed()
        if self.read() == owner:
            self._write(None, version)

    def _write(self, text: str | None, over: bytes) -> bool:
        """Writes or removes the object if it has this version."""
        try:
            self._version = self._store.write(self._key, text, if_equal=over).result().generation
        except ValueError as error:
            raise OSError(first_line(error)) from error
        return bool(self._version)

    def _found(self) -> Any:
        try:
            return self._store.read(self._key).result()
        except ValueError as error:
            raise OSError(first_line(error)) from error

    @functools.cached_property
    def _store(self) -> ts.KvStore:
        return ts.KvStore.open(self._kvstore).result()


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return _parsed(path.read_bytes())
    except FileNotFoundError:
        return None


def _parsed(text: bytes) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _this_process() -> dict[str, Any]:
    process = os.getpid()
    return {
        "host": socket.gethostname(),
        "process": process,
        "namespace": _namespace(),
        "started": _started(process),
        "lock": uuid.uuid4().hex,
    }


def _namespace() -> str:
    """Where process numbers mean the same: this host since its start, and of its containers this one."""
    parts = [socket.gethostname(), str(os.getuid())]
    with contextlib.suppress(OSError):  # not on macOS
        parts += [Path("/proc/sys/kernel/random/boot_id").read_text().strip(), os.readlink("/proc/self/ns/pid")]
    return " ".join(parts)


def _started(process: Any) -> str | None:
    """When a process of this host started, as a text that no later one with its number has; None if there is none."""
    try:
        # The name of the program, in brackets, may hold anything; what follows it is numbers.
        status = Path(f"/proc/{int(process)}/stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError, TypeError):
        return _alive(process)
    return None if status[0] == "Z" else status[19]


def _alive(process: Any) -> str | None:
    """As `_started`, where there is no /proc."""
    if Path("/proc/self").exists():
        return None
    try:
        os.kill(int(process), 0)
    except (OSError, ValueError, TypeError):
        return None
    return "running"

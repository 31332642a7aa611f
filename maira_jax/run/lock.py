"""A lock on a folder that several hosts may share, on any file system that can create a file only if there is none."""

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from pathlib import Path
from typing import Any

from maira_jax.errors import UserError

_REFRESH = 5.0  # seconds between two signs of life of the process that holds a lock
_EXPIRES = 20.0  # seconds without one after which another host takes the lock over


class FolderLock:
    """Keeps other commands out of a folder, by a file next to it that says who works there.

    A lock whose process has ended is taken over: at once where it ran on this host, and on another one when it has
    shown no sign of life for 20 seconds.

    Args:
      folder: the folder; the file is `.NAME.lock`, next to it.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._path = folder.with_name(f".{folder.name}.lock")
        self._owner: dict[str, Any] = {}
        self._released = threading.Event()

    def acquire(self) -> None:
        """Takes the lock.

        Raises:
          UserError: another command works in the folder.
          OSError: the file cannot be written.
        """
        owner = _this_process()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        while not _create(self._path, owner):
            there = _read(self._path)
            if there is None:  # it has just been released
                continue
            if not self._abandoned(there):
                raise UserError(
                    f"another command works in {self._folder} (process {there.get('process')} on {there.get('host')}): "
                    "wait until it has ended"
                )
            self._remove(there)
        self._owner = owner
        self._released.clear()
        threading.Thread(target=self._refresh, name="folder-lock", daemon=True).start()

    def release(self) -> None:
        """Gives the lock back, if it is held."""
        if self._owner:
            self._released.set()
            if _read(self._path) == self._owner:
                self._path.unlink(missing_ok=True)
            self._owner = {}

    def _refresh(self) -> None:
        while not self._released.wait(_REFRESH):
            with contextlib.suppress(OSError):
                os.utime(self._path)

    def _abandoned(self, there: dict[str, Any]) -> bool:
        """Whether the process that holds the lock has ended; waits where only time can tell."""
        if there.get("namespace") == _namespace():
            return there.get("started") != _started(there.get("process"))
        seen, until = _modified(self._path), time.monotonic() + _EXPIRES
        while time.monotonic() < until:
            time.sleep(_EXPIRES / 20)
            if _modified(self._path) != seen:
                return False
        return True

    def _remove(self, abandoned: dict[str, Any]) -> None:
        aside = self._path.with_name(f"{self._path.name}.{uuid.uuid4().hex}")
        with contextlib.suppress(FileNotFoundError):  # another command was faster
            os.rename(self._path, aside)
            if _read(aside) == abandoned:
                aside.unlink()
            else:  # that of a command that was faster, and works now
                os.rename(aside, self._path)


def _create(path: Path, owner: dict[str, Any]) -> bool:
    """Writes the lock if there is none, and tells whether it did."""
    try:
        with path.open("x") as file:
            json.dump(owner, file)
    except FileExistsError:
        return False
    return True


def _read(path: Path) -> dict[str, Any] | None:
    """What a lock says; nothing for one that is just being written or is damaged, None if there is none."""
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _modified(path: Path) -> int | None:
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return None


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

"""What the worker processes of one session of tests share, each of which has a temporary folder of its own."""

import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """A folder that the first worker to need it fills, while others wait.

    Args:
      factory: gives the temporary folders.
      name: of the folder.
      make: fills an empty folder.

    Returns:
      The folder, which nobody changes.
    """
    base = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent  # of all workers
    folder, made = base / name, base / f"{name}.made"
    with (base / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            shutil.rmtree(folder, ignore_errors=True)  # of another worker, in which it failed
            folder.mkdir()
            make(folder)
            made.touch()
    return folder

"""Who may read what a command writes: reports are of patients, and a machine may have other users."""

import os
import stat
from pathlib import Path

from maira_jax.errors import UserError

_umask = os.umask(0)
os.umask(_umask)  # it can be read only by setting it


def restrict(workdir: Path, group: bool) -> None:
    """Keeps what this process writes from now on from other users.

    A run directory that is there says by its own permissions whether its group may read and write what is in it; no
    permissions of what is there change.

    Args:
      workdir: the run directory.
      group: whether its group may, where the directory is to be made.

    Raises:
      UserError: `group` is asked for in a directory that its group cannot write to.
    """
    global _umask
    if workdir.is_dir():
        shared = bool(workdir.stat().st_mode & stat.S_IWGRP)
        if group and not shared:
            raise UserError(
                f"the group of {workdir} cannot write to it: chmod -R g+rwX {workdir}, or leave --group out"
            )
        group = shared
    _umask = stat.S_IRWXO if group else stat.S_IRWXG | stat.S_IRWXO
    os.umask(_umask)


def of_file(path: Path) -> int:
    """The mode of a new file that is to take the place of what is at `path`, which it does not widen."""
    mode = 0o666 & ~_umask
    return mode & path.stat().st_mode if path.is_file() else mode

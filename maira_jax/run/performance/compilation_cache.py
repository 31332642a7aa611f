"""Compiled programs are kept on disk, so that a command that is run again does not compile again."""

import hashlib
import importlib.util
import os
import platform
import sys
from pathlib import Path

import jax

from maira_jax.errors import UserError
from maira_jax.run import storage

_DRIVERS = {"gs": "gcsfs", "s3": "s3fs"}  # with which JAX opens addresses, also the names of the extras


def default_directory() -> Path:
    """The folder in the user's cache directory for processors like this one, whose instructions programs may use."""
    try:
        processor = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags"))
    except (OSError, StopIteration):
        processor = platform.machine()
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "maira-jax" / f"programs-{hashlib.sha256(processor.encode()).hexdigest()[:8]}"


def keep_programs(directory: str | None) -> None:
    """Keeps the programs that this process compiles, and takes those that an earlier one has kept.

    The environment variables of JAX that say the same come first. Programs are executable code, so the folder is made
    for its owner alone.

    Args:
      directory: the folder, or an address in a bucket; None: `default_directory()`; empty: no program is kept.

    Raises:
      UserError: the folder cannot be written, or JAX cannot open the address.
    """
    if directory == "" or "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    if directory is not None and storage.is_address(directory):
        storage.check_address("--compilation_cache", directory)
        scheme = directory.partition("://")[0]
        if importlib.util.find_spec(_DRIVERS[scheme]) is None:
            raise UserError(
                f"--compilation_cache={directory} needs {_DRIVERS[scheme]}: pip install -e '.[{scheme}]', or give "
                "a folder"
            )
        _keep_in(directory)
        return
    path = default_directory() if directory is None else Path(directory).expanduser()
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not os.access(path, os.W_OK):
            raise PermissionError(f"no permission to write {path}")
    except OSError as error:
        if directory is not None:
            raise UserError(
                f"--compilation_cache={directory} cannot be written ({error}): give another folder"
            ) from error
        print(f"compiled programs are not kept: {error}", file=sys.stderr)
        return
    _keep_in(str(path))


def _keep_in(directory: str) -> None:
    jax.config.update("jax_compilation_cache_dir", directory)
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)

"""One side of a benchmark in a process of its own, so that no side has the other's memory, caches or threads."""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import jax

from maira_jax.errors import UserError
from maira_jax.model import sharding

_BEGIN = time.monotonic()


def measured(benchmark: str, options: Sequence[str], who: str, *others: object) -> dict[str, Any]:
    """What `python -m launch.bench BENCHMARK OPTIONS --child WHO OTHERS` prints last, as JSON.

    Its errors and phases (`phase`) are passed on while it runs.

    Args:
      benchmark: the benchmark's name.
      options: the options that it was called with.
      who: the side that is measured.
      others: what `--child` takes besides.

    Raises:
      UserError: it failed.
    """
    command = [sys.executable, "-m", "launch.bench", benchmark, *options, "--child", who, *map(str, others)]
    last = ""
    with tempfile.TemporaryFile("w+") as printed:
        with subprocess.Popen(command, stdout=printed, stderr=subprocess.PIPE, text=True) as child:
            assert child.stderr is not None
            for line in child.stderr:
                print(line, end="", file=sys.stderr, flush=True)
                last = line.strip() or last
        printed.seek(0)
        lines = printed.read().splitlines()
    if child.returncode:
        raise UserError(f"the benchmark of {who} failed: {last or lines[-1]}")
    found: dict[str, Any] = json.loads(lines[-1])
    phase(f"{who}: {json.dumps(found)}")
    return found


def device_state() -> dict[str, Any]:
    """The device that JAX computes on, and the most memory that it has held of a GPU in this process."""
    found = {"jax": jax.__version__, "device": str(jax.devices()[0].device_kind)}
    peak = sharding.peak_memory()
    return found if peak is None else found | {"device_peak_gib": round(peak / 2**30, 2)}


def phase(text: str) -> None:
    """Says on stderr, with the seconds since the process began, how far a benchmark has come."""
    print(f"[{time.monotonic() - _BEGIN:6.1f} s] {text}", file=sys.stderr, flush=True)

"""One side of a benchmark in a process of its own, so that no side has the other's memory, caches or threads."""

import json
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from maira_jax.errors import UserError


def measured(benchmark: str, options: Sequence[str], who: str, *others: object) -> dict[str, Any]:
    """What `python -m launch.bench BENCHMARK OPTIONS --child WHO OTHERS` prints last, as JSON.

    Args:
      benchmark: the benchmark's name.
      options: the options that it was called with.
      who: the side that is measured.
      others: what `--child` takes besides.

    Raises:
      UserError: it failed.
    """
    command = [sys.executable, "-m", "launch.bench", benchmark, *options, "--child", who, *map(str, others)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"the benchmark of {who} failed: {(done.stderr.strip() or done.stdout).splitlines()[-1]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found

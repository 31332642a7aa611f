"""Tries damaged inputs on every reader and prints a table: `python -m tests.fuzz --inputs=2000`.

Each must end in a result or in a sentence, within 10 s of a processor and 1 GiB. Exits with 1 where one did not; the
errors are printed, and `--kind=KIND --first=I --inputs=1` repeats an input.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.fuzz.readers import READERS

_ROOT = Path(__file__).parents[2]
_COLUMNS = ("tried", "refused", "accepted", "errors")


def trials(kind: str, first: int, n: int) -> Iterator[dict[str, Any]]:
    """What the process of one reader prints, and that it was ended; another process goes on behind that input."""
    environment = os.environ | {"PYTHONPATH": str(_ROOT), "JAX_PLATFORMS": "cpu", "MALLOC_ARENA_MAX": "2"}
    stop = first + n
    while first < stop:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "tests.fuzz.process", kind, str(first), str(stop - first)]
            done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
            yield from map(json.loads, done.stdout.splitlines())
            if done.returncode == 0:
                return
            at = Path(folder) / "at.json"
            if not at.exists() or not at.read_text().strip():
                raise RuntimeError(f"{kind}: {done.stderr[-2000:]}")
            last = json.loads(at.read_text())["input"]
        ended = f"the process ended with {done.returncode}: {done.stderr[-200:]!r}"
        yield {"input": last, "error": ended}
        yield {"tried": last - first + 1, "refused": 0, "accepted": 0, "errors": 1, "slowest": 0.0, "peak": 0}
        first = last + 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=2000, help="damaged inputs of each kind")
    parser.add_argument("--first", type=int, default=0, help="number of the first one, which is part of its seed")
    parser.add_argument("--kind", action="append", choices=sorted(READERS), help="one kind; repeat it for several")
    arguments = parser.parse_args()
    failed = False
    print(f"{'kind':32s}" + "".join(f"{name:>10s}" for name in _COLUMNS) + "   slowest      peak", flush=True)
    for kind in arguments.kind or READERS:
        total = dict.fromkeys((*_COLUMNS, "slowest", "peak"), 0)
        for line in trials(kind, arguments.first, arguments.inputs):
            if "error" in line:
                print(f"  {kind}, input {line['input']}: {line['error']}", flush=True)
                continue
            for name in _COLUMNS:
                total[name] += line[name]
            total |= {name: max(total[name], line[name]) for name in ("slowest", "peak")}
        failed |= bool(total["errors"])
        numbers = "".join(f"{total[name]:10,d}" for name in _COLUMNS)
        print(f"{kind:32s}{numbers} {total['slowest']:7.2f} s {total['peak'] / 2**20:5.0f} MiB", flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()

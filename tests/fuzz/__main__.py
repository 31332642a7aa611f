"""Tries damaged inputs on every reader and prints a table: `python -m tests.fuzz --inputs=2000`.

Each must end in a result or in a sentence, within 10 s of a processor and 1 GiB. Exits with 1 where one did not; the
errors are printed, and `--kind=KIND --first=I --inputs=1` repeats an input.
"""

import argparse
import json
import multiprocessing
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from absl import logging

from tests.fuzz.process import run
from tests.fuzz.readers import READERS

_COLUMNS = ("tried", "refused", "accepted", "errors")


def trials(kind: str, first: int, n: int) -> Iterator[dict[str, Any]]:
    """What the process of one reader found, and that it was ended; another process goes on behind that input."""
    stop = first + n
    while first < stop:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "found.jsonl"
            # Forked before JAX has begun any thread: each kind has a process that need not import anything.
            process = multiprocessing.get_context("fork").Process(target=run, args=(kind, first, stop - first, out))
            process.start()
            process.join()
            lines = [json.loads(line) for line in out.read_text().splitlines()]
        yield from (line for line in lines if "at" not in line)
        if process.exitcode == 0:
            return
        last = max(line["at"] for line in lines if "at" in line)
        yield {"input": last, "error": f"the process ended with {process.exitcode}"}
        yield {"tried": last - first + 1, "refused": 0, "accepted": 0, "errors": 1, "slowest": 0.0, "peak": 0}
        first = last + 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=2000, help="damaged inputs of each kind")
    parser.add_argument("--first", type=int, default=0, help="number of the first one, which is part of its seed")
    parser.add_argument("--kind", action="append", choices=sorted(READERS), help="one kind; repeat it for several")
    arguments = parser.parse_args()
    failed = False
    warnings.simplefilter("ignore")  # of libraries, about what is damaged
    logging.set_verbosity(logging.FATAL)
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

"""A process that tries one reader, within limits: `python -m tests.fuzz.process KIND FIRST N`.

Input i of a kind is drawn with the seed "KIND i". Prints a line of JSON for each input that was neither accepted nor
refused, and one at the end. A process that takes more than the limits is ended by the kernel; "at.json" in the current
folder then says which input it was.
"""

import contextlib
import io
import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

import jax

from tests.fuzz.readers import READERS
from tests.fuzz.trial import Trials

MAX_SECONDS, MAX_BYTES = 10, 2**30
_HUNG_SECONDS = 120  # on the clock, for what waits and computes nothing


def _status(name: str) -> int:
    """A figure of this process in bytes: VmSize is what it has reserved, VmHWM the largest that it has used."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) * 1024


def _limit_memory() -> None:
    """Whatever is read may take a GiB beside what the process has, and the stacks of its threads."""
    resource.setrlimit(resource.RLIMIT_AS, (_status("VmSize") + MAX_BYTES,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _where(error: BaseException) -> str:
    """The kind of an error and the last lines of this project that it came through."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "/tests/fuzz/" not in frame.filename and "site-packages" not in frame.filename]
    places = [f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in own[-3:]]
    return f"{type(error).__name__}: {str(error)[:200]} | {' > '.join(places)}"


def main(kind: str, first: int, n: int) -> None:
    jax.devices()
    found = {"tried": 0, "refused": 0, "accepted": 0, "errors": 0, "slowest": 0.0, "peak": 0}
    with tempfile.TemporaryDirectory() as folder, open("at.json", "w") as at:
        trials = Trials(READERS[kind], Path(folder))
        _limit_memory()
        for i in range(first, first + n):
            at.seek(0)
            at.write(json.dumps({"input": i}).ljust(40))
            at.flush()
            Path("/proc/self/clear_refs").write_text("5")
            before, start = _status("VmRSS"), time.process_time()
            signal.setitimer(signal.ITIMER_PROF, MAX_SECONDS)
            signal.alarm(_HUNG_SECONDS)
            try:
                with contextlib.redirect_stderr(io.StringIO()):
                    found["refused" if trials.run(random.Random(f"{kind} {i}")) else "accepted"] += 1
            except BaseException as error:
                found["errors"] += 1
                print(json.dumps({"input": i, "error": _where(error)}), flush=True)
                if isinstance(error, KeyboardInterrupt):
                    raise
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.alarm(0)
            found["tried"] += 1
            found["slowest"] = max(found["slowest"], time.process_time() - start)
            found["peak"] = max(found["peak"], _status("VmHWM") - before)
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    os.environ.setdefault("MALLOC_ARENA_MAX", "2")
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))

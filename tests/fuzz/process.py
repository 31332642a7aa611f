"""What a process does that tries one reader, within limits.

Input i of a kind is drawn with the seed "KIND i". A process that takes more than the limits is ended by the kernel.
"""

import json
import os
import random
import resource
import signal
import tempfile
import time
import traceback
from pathlib import Path

import jax

from tests.fuzz.readers import READERS
from tests.fuzz.trial import Trials

MAX_SECONDS, MAX_BYTES = 10, 2**30
_SHM = Path("/dev/shm")  # files in memory: reading a checkpoint waits until what was written is on disk
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


def run(kind: str, first: int, n: int, out: Path) -> None:
    """Tries n inputs of a kind, from the one numbered `first`, and appends lines of JSON to `out`.

    These are the number of each input, before it is tried; what it ended in, if that was neither a result nor a
    sentence; and at the end the counts.
    """
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)  # libraries in C write about each damaged image
    jax.devices()
    found = {"tried": 0, "refused": 0, "accepted": 0, "errors": 0, "slowest": 0.0, "peak": 0}
    with tempfile.TemporaryDirectory(dir=_SHM if _SHM.is_dir() else None) as folder, out.open("a") as lines:
        trials = Trials(READERS[kind], Path(folder))
        _limit_memory()
        for i in range(first, first + n):
            print(json.dumps({"at": i}), file=lines, flush=True)
            Path("/proc/self/clear_refs").write_text("5")
            before, start = _status("VmRSS"), time.process_time()
            signal.setitimer(signal.ITIMER_PROF, MAX_SECONDS)
            signal.alarm(_HUNG_SECONDS)
            try:
                found["refused" if trials.run(random.Random(f"{kind} {i}")) else "accepted"] += 1
            except BaseException as error:
                found["errors"] += 1
                print(json.dumps({"input": i, "error": _where(error)}), file=lines, flush=True)
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.alarm(0)
            found["tried"] += 1
            found["slowest"] = max(found["slowest"], time.process_time() - start)
            found["peak"] = max(found["peak"], _status("VmHWM") - before)
        print(json.dumps(found), file=lines, flush=True)

"""Memory and speed of a conversion, against reading the same files.

  python -m tests.helpers.random_checkpoint --out=/data/random
  python -m launch.bench convert --checkpoint=/data/random --out=/data/flax --dtype=bfloat16

Prints one line of JSON. Memory is the anonymous memory of the process (`RssAnon`), sampled, which excludes pages of
files. Rates count the checkpoint's bytes; its files are dropped from the page cache before each of the two
measurements.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

_PIECE = 1 << 24


def read_all(directory: Path) -> float:
    """Seconds to read every file of the checkpoint."""
    start = time.monotonic()
    buffer = bytearray(_PIECE)
    for path in sorted(directory.glob("*.safetensors")):
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
    return time.monotonic() - start


def convert(arguments: argparse.Namespace) -> tuple[float, int]:
    """Seconds of the conversion, and its largest anonymous memory in bytes."""
    command = [sys.executable, "-m", "launch.convert", f"--checkpoint={arguments.checkpoint}", f"--out={arguments.out}"]
    command += ["--reverse"] if arguments.reverse else [f"--dtype={arguments.dtype}"]
    start = time.monotonic()
    process = subprocess.Popen(command)
    peak = 0
    while process.poll() is None:
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
        except (FileNotFoundError, ProcessLookupError):
            break
        anonymous = [line.split()[1] for line in status.splitlines() if line.startswith("RssAnon")]
        peak = max([peak, *(int(kilobytes) * 1024 for kilobytes in anonymous)])
        time.sleep(0.05)
    if process.wait():
        sys.exit(process.returncode)
    return time.monotonic() - start, peak


def forget(directory: Path) -> None:
    """Drops the files of a folder from the page cache."""
    for path in filter(Path.is_file, directory.rglob("*")):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def main(options: Sequence[str]) -> None:
    """Converts once and prints the measurements."""
    parser = argparse.ArgumentParser(
        prog="launch.bench convert", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", type=Path, required=True, help="folder that is read")
    parser.add_argument("--out", type=Path, required=True, help="folder that is written; must not exist")
    parser.add_argument("--dtype", default="bfloat16", help="type of the parameters")
    parser.add_argument("--reverse", action="store_true", help="measure launch.convert --reverse")
    arguments = parser.parse_args(options)
    nbytes = sum(path.stat().st_size for path in arguments.checkpoint.rglob("*") if path.is_file())
    result: dict[str, float] = {"checkpoint_gb": nbytes / 1e9}
    if not arguments.reverse:
        forget(arguments.checkpoint)
        result["read_gb_per_s"] = nbytes / 1e9 / read_all(arguments.checkpoint)
    forget(arguments.checkpoint)
    seconds, peak = convert(arguments)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    result |= {"convert_s": seconds, "convert_cpu_s": used.ru_utime + used.ru_stime}
    result |= {"convert_gb_per_s": nbytes / 1e9 / seconds, "peak_anonymous_gib": peak / 2**30}
    if not arguments.reverse:
        result["of_reading"] = result["convert_gb_per_s"] / result["read_gb_per_s"]
    print(json.dumps({key: round(value, 3) for key, value in result.items()}))

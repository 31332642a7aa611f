"""Looks for inputs that reach new lines of the binary readers: `python -m tests.fuzz.with_atheris --seconds=60`.

Atheris (libFuzzer) counts the lines of Python that an input reaches and goes on from those that reach new ones; half of
its changes are those of `mutations`. An input that ends in anything but a result or a sentence, takes 10 s or more than
a GiB ends the run with 1 and is left as `crash-*`, `timeout-*` or `oom-*` in the current folder.
"""

import argparse
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import atheris

# What reads these bytes: to prepare all else for counting takes longer than to look.
_COUNTED = ["maira_jax.checkpoint.torch_file", "maira_jax.inputs", "PIL", "pydicom", "pickle", "zipfile"]

with atheris.instrument_imports(include=_COUNTED):
    from maira_jax.errors import UserError
    from tests.fuzz.mutations import mutated
    from tests.fuzz.readers import READERS

# Readers whose bytes are taken apart in Python; of the others atheris sees nothing.
KINDS = ("torch archive", "torch pickle before 1.6", "PNG", "JPEG", "TIFF", "DICOM", "DICOM, RLE", "DICOM, deflated")
_MAX_MIB = 3072  # of the whole process, which has one or two GiB before it reads anything


def fuzz(kind: str, seconds: int) -> None:
    """Does not return: libFuzzer ends the process."""
    reader, rng = READERS[kind], random.Random(0)
    folder = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    (folder / "corpus").mkdir()
    (folder / "input").mkdir()
    reader.write(folder / "input")
    (name,) = reader.damaged_files(folder / "input")
    path = folder / "input" / name
    (folder / "corpus" / "sound").write_bytes(path.read_bytes())

    def read(data: bytes) -> None:
        path.write_bytes(data)
        try:
            reader.read(folder / "input")
        except UserError as error:
            assert "\n" not in str(error)

    def change(data: bytes, max_size: int, seed: int) -> bytes:
        rng.seed(seed)
        return mutated(name, data, rng)[:max_size] if seed % 2 else atheris.Mutate(data, max_size)

    limits = [f"-max_total_time={seconds}", "-timeout=10", f"-rss_limit_mb={_MAX_MIB}", "-verbosity=0"]
    atheris.Setup([sys.argv[0], *limits, str(folder / "corpus")], read, custom_mutator=change)
    atheris.Fuzz()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=60, help="time for each kind")
    parser.add_argument("--kind", choices=KINDS, help="one kind, in this process")
    arguments = parser.parse_args()
    if arguments.kind:
        fuzz(arguments.kind, arguments.seconds)
    failed = []
    for kind in KINDS:
        command = [sys.executable, "-m", "tests.fuzz.with_atheris", f"--kind={kind}", f"--seconds={arguments.seconds}"]
        if subprocess.run(command).returncode:
            failed.append(kind)
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()

"""Flips a bit in files of a finished run, and deletes them, and says who notices.

`python -m tests.maira_jax.run.stages.damage_table RUN --tries=50` prints a line for each kind of file. The run is only
read. `verify` is `launch.verify`; `next` is what a later stage does before and while it reads the folder, or for the
run's `config.json` any later command. Exits with 1 where neither noticed, or where something else than a sentence came.
"""

import argparse
import contextlib
import functools
import io
import os
import random
import shutil
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path

from maira_jax.checkpoint.store import CheckpointReader
from maira_jax.errors import UserError
from maira_jax.run.stages import run_config
from maira_jax.run.stages.checksums import ARRAY
from maira_jax.run.stages.stage import MANIFEST, refuse_damaged, stages_in
from maira_jax.run.stages.verify import verify
from sae.activations.store import ActivationStore
from sae.saved import load_sae


def kind_of(path: Path) -> str:
    """The kind of a file, by its path in the run directory."""
    if "c" in path.parts:
        return f"chunk in {path.parts[0]}"
    if path.as_posix() == run_config.FILE:
        return "config.json of the run"
    return path.name if path.name in (ARRAY, MANIFEST) else path.suffix or path.name


def _read_activations(folder: Path) -> None:
    store = ActivationStore.open(folder, 1)
    store.read_ranges([(0, store.n_tokens)])


def _read_model(folder: Path) -> None:
    reader = CheckpointReader(folder)
    for entry in reader.table:
        reader.read(entry)


_READ = {"activations": _read_activations, "model": _read_model, "sae": load_sae}


def _read_as_the_next_stage(run: Path, stage: str | None) -> None:
    if stage is None:
        run_config.remembered(run)
        return
    refuse_damaged(run, stage)
    if stage in _READ:
        _READ[stage](run / stage)


def _outcome(read: Callable[[], object]) -> str:
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        try:
            read()
        except UserError:
            return "noticed"
        except Exception as error:
            return f"{type(error).__name__}: {error}"
    return "silent"


def _damage(path: Path, how: str, rng: random.Random) -> None:
    content = bytearray(path.read_bytes())
    path.unlink()  # it may be a link to the sound file
    if how == "flip":
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(content)


def tried(sound: Path, names: list[Path], how: str, tries: int, rng: random.Random) -> Counter[str]:
    """What damage to files of one kind ended in: counts of "verify", "next", "silent" and of errors.

    Args:
      sound: the run, on a file system that is written to: each try has links to its files.
      names: the files, by their paths in the run.
      how: "flip" or "delete".
      tries: how often a file is drawn and damaged.
      rng: draws the file and the bit.
    """
    found: Counter[str] = Counter()
    stages = sorted(stages_in(sound), key=len, reverse=True)
    for _ in range(tries):
        name = rng.choice(names)
        stage = next((stage for stage in stages if name.is_relative_to(stage)), None)
        with tempfile.TemporaryDirectory(dir=sound.parent) as folder:
            run = Path(folder) / "run"
            shutil.copytree(sound / (stage or "export"), run / (stage or "export"), copy_function=os.link)
            os.link(sound / run_config.FILE, run / run_config.FILE)
            _damage(run / name, how, rng)
            outcomes = {
                "verify": _outcome(functools.partial(verify, run)),
                "next": _outcome(functools.partial(_read_as_the_next_stage, run, stage)),
            }
        noticed = [who for who, outcome in outcomes.items() if outcome == "noticed"]
        found.update(noticed or ["silent"])
        found.update(outcome for outcome in outcomes.values() if outcome not in ("noticed", "silent"))
    return found


def _by_kind(run: Path) -> Mapping[str, list[Path]]:
    """The files that hold anything."""
    kinds = defaultdict(list)
    for path in sorted(run.rglob("*")):
        if path.is_file() and path.stat().st_size:
            kinds[kind_of(path.relative_to(run))].append(path.relative_to(run))
    return kinds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a finished run's directory")
    parser.add_argument("--tries", type=int, default=50, help="flips, and deletions, of each kind of file")
    parser.add_argument("--kind", action="append", help="one kind, as the table names it; repeat it for several")
    arguments = parser.parse_args()
    failed = False
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        sound = shutil.copytree(arguments.run, Path(folder) / "sound")
        kinds = _by_kind(sound)
        columns = {"kind": 24, "files": 7, "damage": 8, "tries": 7, "verify": 7, "next": 7, "silent": 7}
        print("".join(f"{name:>{width}s}" for name, width in columns.items()), flush=True)
        for kind in arguments.kind or kinds:
            for how in ("flip", "delete"):
                found = tried(sound, kinds[kind], how, arguments.tries, random.Random(f"{kind} {how}"))
                numbers = [arguments.tries, found.pop("verify", 0), found.pop("next", 0), found.pop("silent", 0)]
                print(f"{kind:>24s}{len(kinds[kind]):7d}{how:>8s}" + "".join(f"{n:7d}" for n in numbers), flush=True)
                for error, count in found.items():
                    print(f"  {count} times {error}", flush=True)
                failed |= bool(found) or bool(numbers[-1])
    sys.exit(failed)


if __name__ == "__main__":
    main()

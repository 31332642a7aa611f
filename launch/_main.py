"""What all commands share: flags, help, errors in one sentence, exit codes."""

import contextlib
import functools
import gc
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import jax
from absl import flags
from ml_collections import ConfigDict

from configs import base
from launch import GC_THRESHOLD, _configuration, _dry_run, _help
from maira_jax.errors import UserError, first_line
from maira_jax.model import sharding
from maira_jax.run import interrupts, permissions, processes, storage
from maira_jax.run.config import Section
from maira_jax.run.coordinator import Address
from maira_jax.run.interrupts import HungUp, Terminated
from maira_jax.run.performance import compilation_cache
from maira_jax.run.performance.freed_memory import keep_freed_memory
from maira_jax.run.processes import BAD_FLAGS, BAD_INPUT, HUNG_UP, INTERRUPTED, TERMINATED, RunEnded
from maira_jax.studies.readers import READERS

Run = Callable[[ConfigDict, Path], Mapping[str, Any]]

_DIGEST = re.compile("[0-9a-f]{64}")  # of a file, which is for programs to compare
_HELP = ("-h", "-help", "--help", "-helpfull", "--helpfull")
_WORKDIR = flags.DEFINE_string(
    "workdir",
    "runs/demo",
    "Run directory, in which each stage reads and writes a folder: a folder, gs://BUCKET/PATH or s3://BUCKET/PATH.",
)
_SCRATCH = flags.DEFINE_string(
    "scratch",
    None,
    "Folder of this host for the files of a run directory in a bucket while commands work with them; it may be deleted "
    "afterwards.",
)
_CACHE = flags.DEFINE_string(
    "compilation_cache",
    None,
    "Folder, or address in a bucket, in which compiled programs are kept for the next run; empty: none are kept. The "
    "environment variable JAX_COMPILATION_CACHE_DIR comes first.",
)
_GROUP = flags.DEFINE_boolean(
    "group",
    False,
    "Let the group of a run directory that is made now read and write what is in it; else only its user can. One that "
    "is there says by its own permissions which.",
)
_DISTRIBUTED = flags.DEFINE_enum(
    "distributed",
    "auto",
    ["auto", "on", "off"],
    "Whether this process is one of several that are one run, each started with the same flags, one on each host: as "
    "the variables of a Cloud TPU slice, GKE, SLURM or Open MPI say, or as the next three flags do. auto: where they "
    "name several.",
)
_COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, which the others connect to.")
_PROCESSES = flags.DEFINE_integer("processes", None, "Number of processes of the run.", lower_bound=1)
_PROCESS = flags.DEFINE_integer("process", None, "Number of this process, from 0.", lower_bound=0)
_RUN_FLAGS = (
    "workdir",
    "scratch",
    "group",
    "compilation_cache",
    "distributed",
    "coordinator",
    "processes",
    "process",
    "dry_run",
)
_DRY_RUN = flags.DEFINE_boolean(
    "dry_run",
    False,
    "Add a number over the devices of all processes, check that these share the run directory, say what the command "
    "would do, and leave nothing behind.",
)
_shortcuts: dict[str, Callable[[Any], Mapping[str, Any]]] = {}
_own: list[str] = []
_MESH = (
    "Devices along the batch, and along each layer, such as 2,4. Left out, it is chosen by the devices' memory. "
    "A conversion cuts its files for the mesh; any other can load them too."
)


def define_shortcut(name: str, explanation: str, fields: Callable[[str], Mapping[str, Any]]) -> None:
    """Defines the flag `--name`, which sets fields of the configuration.

    Args:
      name: the flag's name.
      explanation: what `--help` says of it.
      fields: from the flag's text to the fields, by dotted name; raises ValueError for a text that it cannot read.
    """
    flags.DEFINE_string(name, None, explanation)
    _shortcuts[name] = fields


define_shortcut("mesh", _MESH, lambda text: {"mesh": tuple(int(part) for part in text.split(","))})


def define_profile(steps: str) -> None:
    """Defines the flag `--profile`; `steps` says what it counts."""
    define_shortcut(
        "profile",
        f"Number of {steps} to trace into WORKDIR/profile after the first, for TensorBoard's profiler or Perfetto. "
        "Sets profile.",
        lambda text: {"profile": int(text)},
    )


def define_switch(name: str, explanation: str, field: str) -> None:
    """Defines the flag `--name` (and `--noname`), which sets a field of the configuration, given by its dotted name."""
    flags.DEFINE_boolean(name, None, explanation)
    _shortcuts[name] = lambda value: {field: value}


def list_in_help(flag: flags.FlagHolder) -> flags.FlagHolder:
    """Shows a flag of the command itself, which is not a field of the configuration, in `--help`."""
    _own.append(flag.name)
    return flag


def main(
    run: Run,
    doc: str,
    *,
    reads: Sequence[str],
    parallel: bool = False,
    estimates: str = "",
    stages: Callable[[ConfigDict], Mapping[str, Run]] | None = None,
    words: Callable[[ConfigDict, Path], str] | None = None,
) -> NoReturn:
    """Parses the command line, runs a stage and exits.

    The exit code is 0 when it is done, 1 for bad input, 2 for bad flags, 129 when its terminal was closed, 130 when it
    is interrupted, and 143 when it is terminated or another process of the run is lost.

    Args:
      run: the stage's function.
      doc: the command's docstring, which `--help` shows.
      reads: the names of the sections that the command reads, which `--help` explains; "seed" is the top level.
      parallel: whether every process of a run of several takes part. Otherwise the first one runs the stage.
      estimates: the field of the configuration that has the stage say what it would take, for `--dry_run`.
      stages: gives the stages that a command of several runs, by name, for `--dry_run`.
      words: what the finished stage's files say, in a few lines, which are printed last.
    """
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLD)
    name = Path(sys.argv[0]).stem
    config, address = _parsed(f"python -m launch.{name}", reads)
    if any(argument in _HELP for argument in sys.argv):
        source = _configuration.source(sys.argv, str(_WORKDIR.value))
        print(_help.text(f"python -m launch.{name}", doc, _entries(), sections(config, reads), config, source))
        sys.exit(0)
    if _DRY_RUN.value:
        rehearsed = stages(config) if stages else {name: run}
        run, parallel, words = functools.partial(_dry_run.rehearse, rehearsed, estimates), True, None
    with _ending(f"python -m launch.{name}", reads):
        interrupts.catch()
        processes.start(_DISTRIBUTED.value, address, parallel, _leave)
        processes.silence()
        compilation_cache.keep_programs(_CACHE.value)
        keep_freed_memory()
        workdir = _workdir()
        permissions.restrict(workdir, _GROUP.value)
        with _dry_run.leaving_no_trace(workdir) if _DRY_RUN.value else contextlib.nullcontext():
            processes.check_same(config.to_dict(), workdir)
            _announce(config)
            result = run(config, workdir) if parallel else processes.first_only(lambda: run(config, workdir))
        report(name, result)
        if words and processes.is_first():
            print(words(config, workdir), flush=True)
        processes.close()
        interrupts.ignore()
    sys.exit(0)


def _parsed(command: str, reads: Sequence[str]) -> tuple[ConfigDict, Address | None]:
    """The configuration, and where this process stands in a run of several, as the command line says them."""
    try:
        argv = [argument for argument in sys.argv if argument not in _HELP]
        config = _configuration.parse(argv, lambda: str(_WORKDIR.value), _shortcuts, reads)
        storage.check_address("--workdir", _WORKDIR.value)
        return config, _address()
    except UserError as error:
        _fail(str(error), BAD_INPUT)
    # A configuration file is a program: it can fail in any way.
    except Exception as error:
        _fail(f"{_configuration.sentence(error)} (see {command} --help)", BAD_FLAGS)


@contextlib.contextmanager
def _ending(command: str, reads: Sequence[str]) -> Iterator[None]:
    """Ends all processes with a sentence and its exit code where what runs in the context does not come to its end."""
    try:
        yield
    except RunEnded as ended:
        _leave(ended.sentence, ended.code)
    except UserError as error:
        _fail(str(error), BAD_INPUT)
    except OSError as error:  # of a disk or a connection, where nothing more is known of it
        _fail(f"{error}: fix that and run {command} again", BAD_INPUT)
    except KeyboardInterrupt:
        _fail(f"interrupted: {command} with the same flags resumes from here", INTERRUPTED)
    except Terminated:
        _fail(f"terminated: {command} with the same flags resumes from here", TERMINATED)
    except HungUp:
        _fail(f"the terminal was closed: {command} with the same flags resumes from here", HUNG_UP)
    except SystemExit:  # of a stage that all processes leave together
        processes.close()
        raise
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            _fail_unexpectedly(error)
        _fail(_without_memory(error, command, reads), BAD_INPUT)
    except Exception as error:
        _fail_unexpectedly(error)


def _without_memory(error: Exception, command: str, reads: Sequence[str]) -> str:
    """The sentence for a device whose memory is full: what asked for how much, and the sizes that can be lowered."""
    sizes = [
        f"--config.{section.section}.{field}"
        for section in base.SECTIONS
        if section.section in reads
        for field in section.model_fields
        if field.startswith("batch_")
    ]
    lower = f"lower {' or '.join(sizes)}, or " if sizes else ""
    return f"a device's memory is full ({first_line(error)}): {lower}use more devices, and run {command} again"


def _announce(config: ConfigDict) -> None:
    if processes.is_first():
        line = _configuration.announcement(config, str(_WORKDIR.value))
        if line:
            print(line, file=sys.stderr)


def _workdir() -> Path:
    """The run directory, or the folder of this process that stands for it."""
    if not storage.is_address(_WORKDIR.value):
        return Path(_WORKDIR.value).expanduser()
    scratch = storage.default_scratch() if _SCRATCH.value is None else Path(_SCRATCH.value)
    return storage.attach(_WORKDIR.value, scratch, processes.index())


def _address() -> Address | None:
    """Where the flags say that this process stands in a run of several."""
    coordinator, processes, process = _COORDINATOR.value, _PROCESSES.value, _PROCESS.value
    if coordinator is None and processes is None and process is None:
        return None
    if coordinator is None or processes is None or process is None:
        raise UserError("--coordinator, --processes and --process belong together: give all three")
    if not re.fullmatch(r".+:[0-9]+", coordinator):
        raise UserError(f"--coordinator={coordinator} is not HOST:PORT: correct it")
    if process >= processes:
        raise UserError(f"--process={process}, but processes are numbered from 0 to {processes - 1}: correct it")
    return Address(coordinator, processes, process)


def _entries() -> dict[str, str]:
    """The flags that `--help` explains, apart from the configuration's fields."""
    entries: dict[str, str] = {name: flags.FLAGS[name].help for name in (*_shortcuts, *_own, *_RUN_FLAGS)}
    entries["workdir"] = f"{entries['workdir']} Default: {_WORKDIR.default}"
    entries["scratch"] = f"{entries['scratch']} Default: in the user's cache directory."
    entries["compilation_cache"] = f"{entries['compilation_cache']} Default: in the user's cache directory."
    entries["config"] = _configuration.HELP
    return entries


def sections(config: ConfigDict, reads: Sequence[str]) -> list[type[Section]]:
    """The classes of the sections that a command reads; of the studies, those fields that their reader has."""
    declared: dict[str, type[Section]] = {section.section or "seed": section for section in base.SECTIONS}
    declared["studies"] = READERS.get(config.studies.source)
    return [declared[name] for name in reads]


def report(name: str, result: Mapping[str, Any]) -> None:
    """Prints the single values of a stage's result in one line, and the most memory that a device has held.

    Of a result that has nothing but the digests of files it prints their number.
    """
    shown = {key: value for key, value in result.items() if isinstance(value, int | float | str)}
    values = [f"{key} {_shown(value)}" for key, value in shown.items() if not _DIGEST.fullmatch(str(value))]
    values = values or [f"files {len(shown):,}"]
    if result:
        peak = sharding.peak_memory()
        if peak:
            values.append(f"peak device memory {peak / 2**30:.3g} GiB")
        print(f"{name}: {', '.join(values)}", flush=True)


def _shown(value: Any) -> str:
    if isinstance(value, str):
        return value
    return f"{value:.4g}" if isinstance(value, float) else f"{value:,}"


def _fail(sentence: str, code: int) -> NoReturn:
    """Ends all processes of the run."""
    _leave(*processes.end(sentence, code))


def _fail_unexpectedly(error: Exception) -> NoReturn:
    """Ends all processes of the run with an error of the program, or with what another one's end has caused here."""
    if processes.count() == 1:
        raise error
    failure = processes.await_failure()
    if failure is not None:
        _leave(failure.sentence, failure.code)
    traceback.print_exception(error, file=sys.__stderr__)
    what = f"{type(error).__name__}: {first_line(error)}"
    _fail(f"process {processes.index()} failed unexpectedly ({what}): see its traceback", BAD_INPUT)


def _leave(sentence: str, code: int) -> NoReturn:
    """Prints the sentence and ends this process."""
    prefix = "" if processes.is_first() else f"[{processes.index()}] "
    with contextlib.suppress(OSError):  # of a terminal that was closed
        print(f"{prefix}error: {storage.named(sentence)}", file=sys.__stderr__, flush=True)
    interrupts.leave(code)

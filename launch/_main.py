"""What all commands share: flags, help, errors in one sentence, exit codes."""

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from absl import flags
from ml_collections import ConfigDict, config_flags

from configs import base
from launch import _help
from maira_jax.errors import UserError
from maira_jax.model import sharding
from maira_jax.run import compilation_cache
from maira_jax.run.config import RunSection, Section
from maira_jax.studies.readers import READERS

Run = Callable[[ConfigDict, Path], Mapping[str, Any]]

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
DEFAULT_CONFIG = CONFIGS / "phantom.py"

_DIGEST = re.compile("[0-9a-f]{64}")  # of a file; its start tells it from others
_HELP = ("-h", "-help", "--help", "-helpfull", "--helpfull")
_CONFIG_HELP = "Python file with `get_config()` that describes the whole run; FILE:ARG passes ARG to it."
_WORKDIR = flags.DEFINE_string("workdir", "runs/demo", "Run directory. Each stage reads and writes a folder in it.")
_CACHE = flags.DEFINE_string(
    "compilation_cache",
    None,
    "Folder in which compiled programs are kept for the next run; empty: none are kept. The environment variable "
    "JAX_COMPILATION_CACHE_DIR comes first.",
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


def main(run: Run, doc: str, *, reads: Sequence[str]) -> NoReturn:
    """Parses the command line, runs a stage and exits: 0 done, 1 bad input, 2 bad flags, 130 interrupted.

    Args:
      run: the stage's function.
      doc: the command's docstring, which `--help` shows.
      reads: the names of the sections that the command reads, which `--help` explains; "seed" is the top level.
    """
    command = f"python -m launch.{Path(sys.argv[0]).stem}"
    asks_help = any(argument in _HELP for argument in sys.argv)
    try:
        config = _parse([argument for argument in sys.argv if argument not in _HELP], reads)
    except UserError as error:
        _fail(str(error), code=1)
    # A configuration file is a program: it can fail in any way.
    except Exception as error:
        _fail(f"{_sentence(error)} (see {command} --help)", code=2)
    if asks_help:
        entries = {name: flags.FLAGS[name].help for name in (*_shortcuts, *_own)}
        entries["workdir"] = f"{flags.FLAGS['workdir'].help} Default: {_WORKDIR.default}"
        entries["compilation_cache"] = (
            f"{flags.FLAGS['compilation_cache'].help} Default: in the user's cache directory."
        )
        entries["config"] = f"{_CONFIG_HELP} Default: {DEFAULT_CONFIG}"
        given = [argument.partition("=")[2] for argument in sys.argv if argument.startswith(("--config=", "-config="))]
        print(_help.text(command, doc, entries, sections(config, reads), config, (given or [DEFAULT_CONFIG.name])[-1]))
        sys.exit(0)
    try:
        compilation_cache.keep_programs(_CACHE.value)
        report(Path(sys.argv[0]).stem, run(config, Path(_WORKDIR.value).expanduser()))
    except UserError as error:
        _fail(str(error), code=1)
    except OSError as error:  # of a disk or a connection, where nothing more is known of it
        _fail(f"{error}: fix that and run {command} again", code=1)
    except KeyboardInterrupt:
        _fail(f"interrupted: {command} with the same flags resumes from here", code=130)
    sys.exit(0)


def sections(config: ConfigDict, reads: Sequence[str]) -> list[type[Section]]:
    """The classes of the sections that a command reads; of the studies, those fields that their reader has."""
    declared: dict[str, type[Section]] = {section.section or "seed": section for section in base.SECTIONS}
    declared["studies"] = READERS.get(config.studies.source)
    return [declared[name] for name in reads]


def report(name: str, result: Mapping[str, Any]) -> None:
    """Prints the single values of a stage's result in one line, and the most memory that a device has held."""
    values = [f"{key} {_shown(value)}" for key, value in result.items() if isinstance(value, int | float | str)]
    if result:
        peak = sharding.peak_memory()
        if peak:
            values.append(f"peak device memory {peak / 2**30:.3g} GiB")
        print(f"{name}: {', '.join(values)}", flush=True)


def _shown(value: Any) -> str:
    if isinstance(value, str):
        return value[:12] if _DIGEST.fullmatch(value) else value
    return f"{value:.4g}" if isinstance(value, float) else f"{value:,}"


def _parse(argv: Sequence[str], reads: Sequence[str]) -> ConfigDict:
    # Defined here and not at import, since the definition already reads the file and the command line.
    flag = config_flags.DEFINE_config_file("config", default=str(DEFAULT_CONFIG), help_string=_CONFIG_HELP)
    stray = flags.FLAGS(list(argv))[1:]
    if stray:
        raise ValueError(f"{stray[0]!r} is not a flag: flags look like --name=value")
    config: ConfigDict = flag.value
    for name, fields in _shortcuts.items():
        given = flags.FLAGS[name].value
        if given is not None:
            try:
                config.update_from_flattened_dict(fields(given))
            except (TypeError, ValueError) as error:
                raise ValueError(f"--{name}={given} cannot be read: {error}") from error
    for section in reads:
        if section not in config:
            raise KeyError(section)
    unknown = sorted(set(config) - {section.section for section in base.SECTIONS} - set(RunSection.model_fields))
    if unknown:
        raise UserError(f"the configuration file sets {unknown[0]}, which is not a section: correct or remove it")
    RunSection.of(config)
    return config


def _sentence(error: Exception) -> str:
    """What went wrong with the flags; ml_collections nests its exceptions and puts tracebacks into their messages."""
    inner: BaseException = error
    while inner.args and isinstance(inner.args[0], BaseException):
        inner = inner.args[0]
    message = str(inner.args[0]) if inner.args else type(inner).__name__
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    if isinstance(error, AttributeError | KeyError):
        return f"the configuration has no field {'. '.join(lines)}"
    if isinstance(error, OSError):
        return f"the configuration cannot be read: {lines[-1]}"
    if isinstance(error, flags.Error | ValueError | TypeError) and len(lines) == 1:
        return lines[0].removesuffix(".")
    return f"the configuration file fails with {type(error).__name__}: {lines[-1]}"


def _fail(sentence: str, code: int) -> NoReturn:
    print(f"error: {sentence}", file=sys.stderr, flush=True)
    sys.exit(code)

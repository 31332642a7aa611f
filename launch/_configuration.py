"""The configuration of a command: a file's or the one that the run directory remembers, changed by flags."""

import ast
import importlib.util
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags
from ml_collections.config_flags import tuple_parser
from ml_collections.config_flags.config_flags import ConfigFileFlagParser

from configs import base
from maira_jax.errors import UserError, first_line
from maira_jax.run import files, storage
from maira_jax.run.config import RunSection, refuse_secrets_of, shown
from maira_jax.run.stages import run_config
from maira_jax.run.stages.run_config import RunMemory

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
DEFAULT_CONFIG = CONFIGS / "phantom.py"
HELP = (
    "Python file with `get_config()` that describes the whole run; FILE:ARG passes ARG to it. Left out, it is the "
    "configuration that the run directory remembers; in a new one, of the phantom."
)

Shortcuts = Mapping[str, Callable[[Any], Mapping[str, Any]]]
_FILE, _MODEL, _STUDIES = ("--config=", "-config="), "--config.model.", "--config.studies."
_DIFFERENCES = 6  # fields that are told by name


class _ListParser(tuple_parser.TupleParser):
    """Reads lists: members separated by commas, or as Python writes a tuple."""

    def parse(self, argument: Any) -> tuple[Any, ...]:
        if isinstance(argument, list):  # of a flag that is given more than once
            return tuple(member for text in argument for member in self.parse(text))
        if not isinstance(argument, str):
            return super().parse(argument)
        text = argument.strip()
        if text[:1] in ("(", "["):
            return tuple(super().parse(text))
        return tuple(_member(part.strip()) for part in text.split(",")) if text else ()


def _member(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def parse(argv: Sequence[str], workdir: Callable[[], str], shortcuts: Shortcuts, reads: Sequence[str]) -> ConfigDict:
    """Parses the command line.

    Args:
      argv: the command line.
      workdir: gives the run directory, or its address, once the flags are parsed.
      shortcuts: the fields that a flag of that name sets.
      reads: the names of the sections that the command reads.

    Returns:
      The configuration.

    Raises:
      UserError: the configuration has a section that does not exist, or what is remembered cannot be read.
      Exception: whatever else is wrong with the flags or in the configuration file; see `sentence`.
    """
    config_flags.register_flag_parser_for_type(tuple, _ListParser())
    flags.FLAGS(list(argv), known_only=True)
    repeated = tuple(argument for argument in argv if argument.startswith((*_FILE, _MODEL)))
    given, argv = given_file(argv), [argument for argument in argv if not argument.startswith(_FILE)]
    memory = None if given else _memory(workdir())
    if memory is None:
        if given and not Path(given.partition(":")[0]).is_file():  # the parser tells it late and at length
            raise FileNotFoundError(f"No such file or directory: {given.partition(':')[0]!r}")
        config = ConfigFileFlagParser("config").parse(given or str(DEFAULT_CONFIG))
    else:
        _load_origin(memory.origin, workdir())
        config = _of_memory(memory, workdir())
    _choose_reader(config, argv)
    # Defined here and not at import, since the definition already needs the configuration.
    config_flags.DEFINE_config_dict("config", config, help_string=HELP, sys_argv=argv)
    stray = flags.FLAGS(argv)[1:]
    if stray:
        raise ValueError(f"{stray[0]!r} is not a flag: flags look like --name=value")
    for name, fields in shortcuts.items():
        value = flags.FLAGS[name].value
        if value is not None:
            try:
                config.update_from_flattened_dict(fields(value))
            except (TypeError, ValueError) as error:
                raise ValueError(f"--{name}={value} cannot be read: {_readable(str(error))}") from error
    for section in reads:
        if section not in config:
            raise KeyError(section)
    unknown = sorted(set(config) - {section.section for section in base.SECTIONS} - set(RunSection.model_fields))
    if unknown:
        raise UserError(f"the configuration file sets {unknown[0]}, which is not a section: correct or remove it")
    RunSection.of(config)
    refuse_secrets_of(config)
    run_config.came_from(memory.origin if memory else _absolute(given or str(DEFAULT_CONFIG)), repeated)
    return config


def _choose_reader(config: ConfigDict, argv: Sequence[str]) -> None:
    """Gives the section of the studies the fields of the reader that the command line chooses.

    Raises:
      UserError: nobody has registered that reader, or it has no such field.
    """
    fields = [argument.removeprefix(_STUDIES).partition("=") for argument in argv if argument.startswith(_STUDIES)]
    if not fields:
        return
    source = next((value for name, _, value in reversed(fields) if name == "source"), config.studies.source)
    if source != config.studies.source:
        section = base.studies(source)
        if "path" in section:
            section.path = config.studies.get("path") or ""
        with config.unlocked():
            config.studies = section
    unknown = [name for name, _, _ in fields if name not in config.studies]
    if unknown:
        raise UserError(
            f"studies.{unknown[0]} is unknown to studies.source={source}, which has {', '.join(config.studies)}: "
            "correct it, or choose another reader with --config.studies.source=NAME"
        )


def given_file(argv: Sequence[str]) -> str:
    """The configuration file as the command line names it; empty where it does not."""
    given = [argument.partition("=")[2] for argument in argv if argument.startswith(_FILE)]
    return given[-1] if given else ""


def source(argv: Sequence[str], workdir: str) -> str:
    """Where the values of the configuration come from, as `--help` says it."""
    if given_file(argv) or _memory(workdir) is None:
        return given_file(argv) or DEFAULT_CONFIG.name
    return f"{workdir}/{run_config.FILE}"


def announcement(config: ConfigDict, workdir: str) -> str:
    """What differs from the configuration that the run directory remembers, in one line; empty if nothing does."""
    memory = _memory(workdir)
    different = [f"{name}={shown(value)}" for name, value in memory.differences(config).items()] if memory else []
    if not different:
        return ""
    more = f", and {len(different) - _DIFFERENCES} more" if len(different) > _DIFFERENCES else ""
    return f"different from {workdir}/{run_config.FILE}: {', '.join(different[:_DIFFERENCES])}{more}"


def _memory(workdir: str) -> RunMemory | None:
    """What the run directory remembers, also of one in a bucket that no folder stands for yet."""
    if not storage.is_address(workdir):
        return RunMemory.read(Path(workdir).expanduser() / run_config.FILE)
    storage.check_address("--workdir", workdir)
    text = storage.peek(workdir, run_config.FILE)
    if text is None:
        return None
    try:
        return RunMemory.parse(files.parse_json(text), f"{workdir}/{run_config.FILE}")
    except ValueError as error:
        raise UserError(f"{workdir}/{run_config.FILE} is not JSON: delete it and give --config=FILE") from error


def _of_memory(memory: RunMemory, workdir: str) -> ConfigDict:
    """The configuration that is remembered, as flags change it."""
    try:
        return base.with_values(memory.config())
    except UserError as error:
        again = "" if not memory.origin else f", or give --config={memory.origin} from where that file is now"
        raise UserError(f"{workdir}/{run_config.FILE}: {error}{again}") from error


def _load_origin(origin: str, workdir: str) -> None:
    """Runs the user's own configuration file, which may register a reader or a variant; its values are not used.

    Raises:
      UserError: it fails, or lies in the run directory, which may come from somebody else with what it holds.
    """
    path = Path(origin.partition(":")[0])
    if not path.is_absolute() or not path.is_file():  # of this repository, made in Python, or moved since
        return
    if not storage.is_address(workdir) and path.resolve().is_relative_to(Path(workdir).expanduser().resolve()):
        raise UserError(
            f"{path}, which {workdir}/{run_config.FILE} names, lies in the run directory itself, and is a program: "
            f"give --config={origin} if you trust it, and keep it elsewhere"
        )
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    spec = importlib.util.spec_from_file_location("run_configuration", path)
    assert spec is not None and spec.loader is not None
    try:
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
    except Exception as error:
        raise UserError(
            f"{path}, which the configuration of {workdir} was made by, fails ({first_line(error)}): correct it, or "
            "give the configuration with --config=FILE"
        ) from error


def _absolute(origin: str) -> str:
    """A configuration file so that it can be found from any folder; those of this repository by their name."""
    name, colon, argument = origin.partition(":")
    path = Path(name).expanduser().resolve()
    path = path.relative_to(CONFIGS.parent) if path.is_relative_to(CONFIGS) else path
    return f"{path}{colon}{argument}"


def sentence(error: Exception) -> str:
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
        return _readable(lines[0].removesuffix("."))
    return f"the configuration file fails with {type(error).__name__}: {lines[-1]}"


def _readable(message: str) -> str:
    """Python's message of a text that is no number, in plain words."""
    message = re.sub(r"could not convert string to float: ('.*')", r"\1 is not a number", message)
    return re.sub(r"invalid literal for int\(\) with base 10: ('.*')", r"\1 is not a whole number", message)

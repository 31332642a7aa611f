"""What a run directory remembers: `WORKDIR/config.json`, the configuration that later commands take as their default.

A stage that begins writes it. A section that an earlier stage was decided by stays as it was then; any other is the
present command's, so that the first stage that reads a section settles it. Which sections are settled is not written
down: the stages' manifests say it, so a folder that is deleted settles nothing any more.
"""

import dataclasses
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_collections

from maira_jax.errors import UserError
from maira_jax.run import files, storage
from maira_jax.run.config import is_remembered, shown
from maira_jax.run.stages import checksums

FILE = "config.json"
# Of the studies, a stage may be decided by the first n alone.
_SIZES = {"n", "on_error"}

# The folder of each stage that is there, finished or not, and the section that it was decided by.
Stages = Mapping[str, Mapping[str, Any]]

_origin = ""
_given: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class RunMemory:
    """What `config.json` holds.

    Attributes:
      origin: the configuration file, with its argument after a colon; empty for a configuration made in Python.
      values: the values of all sections and fields, as JSON has them.
    """

    origin: str
    values: Mapping[str, Any]

    @classmethod
    def read(cls, path: Path) -> "RunMemory | None":
        """What a file holds; None where there is none.

        Raises:
          UserError: it is no such file.
        """
        return cls.parse(files.read_object(path), path) if path.is_file() else None

    @classmethod
    def parse(cls, found: Any, path: Path | str) -> "RunMemory":
        """What the JSON of a file holds; `path` is for the message.

        Raises:
          UserError: it is of another kind, or was changed since a command wrote it.
        """
        try:
            memory = cls(str(found.get("origin", "")), dict(found["values"]))
            memory.config()
            is_whole = found.get("checksum") == checksums.sign(found)["checksum"]
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise UserError(
                f"{path} holds no configuration of a run: delete it and give --config=FILE once more"
            ) from error
        if not is_whole:
            raise UserError(f"{path} is not what a command wrote: delete it and give --config=FILE once more")
        return memory

    def write(self, path: Path) -> None:
        """Writes the file, with a checksum of itself."""
        files.write_json(path, checksums.sign(dataclasses.asdict(self)))

    def config(self) -> ml_collections.ConfigDict:
        """The values as stages read them, with tuples in place of JSON's lists."""
        return ml_collections.ConfigDict(_tuples(self.values))

    def differences(self, config: ml_collections.ConfigDict) -> dict[str, Any]:
        """The fields in which a configuration differs, by dotted name, with its own values."""
        ours, theirs = flatten(_remembered_values(config)), flatten(self.values)
        return {name: ours[name] for name in ours if name not in theirs or ours[name] != theirs[name]}


def remembered(workdir: Path | str) -> ml_collections.ConfigDict:
    """The configuration of a run directory, for stages and for use in Python.

    Args:
      workdir: a folder, or the one that `storage.attach` gives for an address.

    Raises:
      UserError: no command has begun a stage there.
    """
    path = Path(workdir).expanduser() / FILE
    storage.fetch(path)
    memory = RunMemory.read(path)
    if memory is None:
        raise UserError(
            f"{storage.named(str(path))} does not exist: give the folder of a run, or give a command there its "
            "--config=FILE once more"
        )
    return memory.config()


def came_from(origin: str, given: tuple[str, ...] = ()) -> None:
    """Says where the configuration of this process's stages comes from.

    Args:
      origin: the configuration file, with its argument.
      given: the flags of this command that another one needs as well, to have the same model and studies.
    """
    global _origin, _given
    _origin, _given = origin, given


def given_flags() -> str:
    """The flags that a command which is to be run before this one needs as well, for a shell, each after a space."""
    return "".join(f" {shlex.quote(flag)}" for flag in _given)


def remember(workdir: Path, config: ml_collections.ConfigDict, stages: Stages) -> None:
    """Writes what is to be remembered when a stage begins.

    Args:
      workdir: the run directory.
      config: the configuration that the stage begins with.
      stages: those that are there.
    """
    path, values = workdir / FILE, _remembered_values(config)
    memory = RunMemory.read(path)
    if memory is not None:
        settled = {name for folder, section in stages.items() for name in _decided_by(folder, section, values)}
        values |= {name: value for name, value in memory.values.items() if name in settled}
    if memory is None or memory.values != values:
        RunMemory(_origin, values).write(path)


def restore(workdir: Path, memory: RunMemory | None) -> None:
    """Takes back what a stage has had remembered that leaves no result."""
    if memory is None:
        files.remove(workdir / FILE)
    elif memory != RunMemory.read(workdir / FILE):
        memory.write(workdir / FILE)


def refuse_contradiction(workdir: Path, config: ml_collections.ConfigDict, stages: Stages) -> None:
    """Refuses studies that are not those of the stages that are there.

    Raises:
      UserError: a stage was decided by other studies; it and the field are named.
    """
    ours = flatten(_remembered_values(config).get("studies", {}))
    for folder, section in stages.items():
        theirs = flatten(section.get("studies", {}))
        for name in sorted(theirs.keys() & ours.keys() - _SIZES):
            if ours[name] != theirs[name]:
                raise UserError(
                    f"{workdir / folder} is of other studies: studies.{name} is {shown(ours[name])} now and "
                    f"{shown(theirs[name])} there: leave --config out, choose another --workdir, or delete what is of "
                    "the other studies"
                )


def _decided_by(folder: str, section: Mapping[str, Any], values: Mapping[str, Any]) -> set[str]:
    """The names of the configuration's sections that decided a stage: its own, which its folder may be named after."""
    return {name for name in (*section, folder.partition("/")[0]) if name in values}


def _remembered_values(config: ml_collections.ConfigDict) -> dict[str, Any]:
    return {
        name: {field: inner for field, inner in value.items() if is_remembered(f"{name}.{field}")}
        if isinstance(value, dict)
        else value
        for name, value in plain(config.to_dict()).items()
        if is_remembered(name)
    }


def plain(value: Any) -> Any:
    """`value` as JSON gives it back, so that a section compares equal to the one in a file."""
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]
    return str(value) if isinstance(value, Path) else value


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """The leaves of nested objects, by dotted name; an object without any is one itself."""
    if not isinstance(value, Mapping) or (prefix and not value):
        return {prefix: value}
    leaves: dict[str, Any] = {}
    for key, inner in value.items():
        leaves |= flatten(inner, f"{prefix}.{key}" if prefix else str(key))
    return leaves


def _tuples(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _tuples(inner) for name, inner in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value

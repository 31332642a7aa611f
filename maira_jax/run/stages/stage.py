"""A stage of a run: one folder with one manifest, which a second run resumes, finds finished or refuses."""

import contextlib
import datetime
import importlib.metadata
import math
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import jax
import ml_collections

from maira_jax.errors import UserError
from maira_jax.run import files, jsonl, processes, storage
from maira_jax.run.config import refuse_secrets_of, shown
from maira_jax.run.lock import FolderLock
from maira_jax.run.stages import checksums, run_config
from maira_jax.run.stages.growth import Growth, grown
from maira_jax.run.stages.run_config import RunMemory, flatten, plain

MANIFEST = "manifest.json"
UNFINISHED = "unfinished.json"
_MODEL = "model"
_NEXT = ".next.tmp"  # the folder of a result that is to replace another one; what a killed command leaves is removed
# The command that writes a folder; sae-NAME is written with sae.
_COMMANDS = {
    _MODEL: "convert",
    "activations": "harvest",
    "sae": "train",
    "interp": "interpret",
    "interpretations": "import_sae",
    "steer": "steer",
    "evaluation": "evaluate",
}
_FIELDS = {"section": dict, "inputs": dict, "grown_from": dict, "grows": list}  # of a record, with their types
_FINISHED_FIELDS = {"counts": dict, "files": dict}
_APART = (MANIFEST, UNFINISHED, *jsonl.LEFT)  # names in a stage's folder that are no part of its result
_PACKAGES = ("maira-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "tensorstore", "grain", "numpy")


def _versions() -> dict[str, str]:
    versions = {"python": sys.version.split()[0]}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return versions


def _command_of(folder: str, workdir: Path) -> str:
    """The command that writes a stage's folder.

    One that has been begun resumes with what the run directory remembers; a file would replace the flags it had.
    """
    name, _, inner = folder.partition("/")
    command = _COMMANDS.get(name.partition("-")[0])
    if command is None:
        return "that stage"
    flag = f" --{'set' if name == 'interpretations' else 'sweep'}={inner}" if inner else ""
    given = "" if (workdir / folder / UNFINISHED).is_file() else run_config.given_flags()
    return f"`python -m launch.{command} --workdir={workdir}{flag}{given}`"


def _is_same_folder(one: str, other: str) -> bool:
    return Path(one).expanduser().resolve() == Path(other).expanduser().resolve()


def _first_difference(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> str:
    left, right = flatten(ours), flatten(theirs)
    for key in sorted(left.keys() | right.keys()):
        if left.get(key) != right.get(key):
            if key.startswith("inputs."):
                return f"{key}, which was made anew or extended since"
            return f"{key} (now {shown(left.get(key))}, there {shown(right.get(key))})"
    for key in sorted(left.keys() ^ right.keys()):  # it is None on the one side
        return f"{key}, which the version {'that wrote it' if key in left else 'at hand'} does not have"
    return "what it holds"


def _refuse_not_finite(section: Mapping[str, Any]) -> None:
    for name, value in flatten(section).items():
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, float) and not math.isfinite(number):
                raise UserError(f"{name} is {number}, which is not a finite number: change it")


def _commit() -> str | None:
    """The commit of the source that runs, with "-dirty" where files differ from it; None outside of a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def read_manifest(path: Path) -> dict[str, Any]:
    """Reads the manifest of a finished stage, or the record of one that was begun.

    Raises:
      UserError: it is missing, or not as the stage wrote it.
    """
    found = files.read_object(path)
    checksums.check_signed(path, found)
    fields = _FIELDS | (_FINISHED_FIELDS if path.name == MANIFEST else {})
    has_form = all(isinstance(found.get(name), kind) for name, kind in fields.items())
    if not has_form or not all(isinstance(entry, dict) for entry in found.get("files", {}).values()):
        raise UserError(f"{path} has not the form of a stage's: delete {path.parent} and run that stage again")
    return found


def refuse_damaged(workdir: Path, name: str) -> dict[str, Any]:
    """Compares the files of a finished stage with its manifest, which is returned.

    Args:
      workdir: the run directory.
      name: the stage's folder.

    Raises:
      UserError: a file is missing or was changed.
    """
    folder = workdir / name
    manifest = read_manifest(folder / MANIFEST)
    found = checksums.problems(folder, manifest["files"], may_be_absent=storage.is_remote(folder))
    if found:
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        command = _command_of(name, workdir)
        raise UserError(f"{found[0]}{more}: restore it, or delete {folder} and run {command} again")
    return manifest


def _digest(manifest: Mapping[str, Any]) -> str:
    """What decided a finished stage, and what it counted."""
    return files.digest({key: manifest[key] for key in ("section", "inputs", "counts")})


def _before_growth(manifest: Mapping[str, Any]) -> str:
    """What of a finished stage stays the same when it grows."""
    fields = set(manifest.get("grows", ()))
    kept = {name: value for name, value in flatten(manifest["section"]).items() if name not in fields}
    return files.digest([kept, manifest["inputs"]])


def made_of_others(workdir: Path, name: str, manifest: Mapping[str, Any]) -> list[str]:
    """What a finished stage was made of and is another now, a clause for each; what has only grown since is the same.

    Args:
      workdir: the run directory.
      name: the stage's folder.
      manifest: its manifest.
    """
    found = []
    for source, digest in manifest["inputs"].items():
        path = workdir / source / MANIFEST
        if not path.is_file():
            continue
        there = read_manifest(path)
        has_grown = bool(there["grows"]) and manifest["grown_from"].get(source) == _before_growth(there)
        if digest != _digest(there) and not has_grown:
            found.append(f"{workdir / name} was made of another {path.parent} than the one that is there")
    return found


def stages_in(workdir: Path) -> dict[str, dict[str, Any]]:
    """The folder of each stage that is there, finished or not, and the section that it was decided by."""
    storage.fetch(workdir, (MANIFEST, UNFINISHED))
    patterns = (f"{place}/{name}" for place in ("*", "*/*") for name in (UNFINISHED, MANIFEST))
    paths = [path for pattern in patterns for path in sorted(workdir.glob(pattern))]
    return {path.parent.relative_to(workdir).as_posix(): _section_of(path) for path in paths}


def _section_of(path: Path) -> dict[str, Any]:
    section = files.read_object(path).get("section", {})
    if not isinstance(section, dict):
        raise UserError(
            f"{path} is not what a stage wrote: restore it, or delete {path.parent} and run that stage again"
        )
    return section


class StageReached(BaseException):
    """A stage was entered where it was only to be asked what it would do; see `stopping`.

    Attributes:
      stage: the stage, which knows how far its folder is.
    """

    def __init__(self, stage: "Stage"):
        super().__init__(stage.name)
        self.stage = stage


_stops = False


@contextlib.contextmanager
def stopping() -> Iterator[None]:
    """Within the context, a stage that is entered raises `StageReached` instead of beginning its work."""
    global _stops
    _stops = True
    try:
        yield
    finally:
        _stops = False


class Stage:
    """Owns the folder `workdir/name` while the stage runs.

    In a run of several processes all of them enter it; the first one locks the folder, decides how far it is, and
    writes the manifest.

    Where the folder stands for one in a bucket, entering brings what the stage's inputs and an earlier attempt left
    there into each process's scratch, and `finish` sends what each process has written, the manifest last.

    The folder's content survives a kill: when the same stage with the same section and the same input manifests is run
    again, `dir` holds what the earlier attempt wrote, and the stage resumes. `finish` writes the manifest last.

    Args:
      workdir: the run directory.
      name: the stage's folder.
      section: every field of the configuration that decides this stage's result, as plain values.
      inputs: folder names of the stages that this one reads.
      computing: fields that only say how the result is computed (meshes, sizes of parts, intervals); recorded in the
        manifest, never compared.
      config: the whole configuration, which the run directory is to remember; None where the folder is in no run.
      grows: how fields of the section that say how much is wanted, by dotted name, become those of a larger result.
        Where they ask for no more than is there, it is finished. Else it is unfinished, the old result is still there,
        `section` is what is there and what is wanted together, and `extended` tells the first process that it has just
        become that.
      may_grow: those inputs that may have become larger (see their `grows`) since this result was made of them.
      replaces: whether a result of another configuration or of other inputs is not refused: it stays as it is until
        this one is whole, which is written into a folder inside of it, `dir`, and then takes its place.

    Raises:
      UserError: a field of the section is NaN or infinite.

    Raises (on entering):
      UserError: an input stage is not finished, a file of it is missing or was changed, the folder holds a result of
        another configuration, another stage one of other studies, the model that it reads is another than the
        configuration's, or another process works in it.
    """

    def __init__(
        self,
        workdir: Path,
        name: str,
        section: Mapping[str, Any],
        inputs: tuple[str, ...] = (),
        computing: Mapping[str, Any] | None = None,
        config: ml_collections.ConfigDict | None = None,
        grows: Mapping[str, Growth] | None = None,
        may_grow: tuple[str, ...] = (),
        replaces: bool = False,
    ):
        self.workdir = Path(workdir)
        self.name = name
        self.dir = self.workdir / name
        self.section = plain(section)
        _refuse_not_finite(self.section)
        self.inputs = inputs
        self.computing = plain(computing or {})
        self.grows = grows or {}
        self.may_grow = may_grow
        self.replaces = replaces
        self.finished = False
        self.extended = False
        self.manifest: dict[str, Any] = {}
        self._config = config
        self._memory: RunMemory | None = None  # before the stage begins
        self._grown_from: dict[str, str] = {}  # what of each input stays the same when it grows
        self._lock = FolderLock(self.dir)

    def __enter__(self) -> Self:
        refusal: UserError | None = None
        for name in self.inputs:
            storage.fetch(self.workdir / name)
        if processes.is_first():
            try:
                inputs = self._inputs()
                self._grown_from = {name: _before_growth(inputs[name]) for name in inputs}
                self._begin({"section": self.section, "inputs": {name: _digest(inputs[name]) for name in inputs}})
            except UserError as error:
                refusal = error
        sentence, self.finished, self.manifest = processes.broadcast(
            [refusal and str(refusal), self.finished, self.manifest]
        )
        if sentence is not None:
            raise refusal or UserError(sentence)
        self.section = self.manifest["section"]
        if _stops:
            self.__exit__(None, None, None)
            raise StageReached(self)
        if not processes.is_first():
            storage.fetch(self.dir)
        return self

    def _begin(self, identity: Mapping[str, Any]) -> None:
        """Locks the folder, unless its result is finished, and reads how far an earlier attempt came."""
        if self._config is not None:
            refuse_secrets_of(self._config)
            storage.fetch(self.workdir / run_config.FILE)
            self._memory = RunMemory.read(self.workdir / run_config.FILE)
            if self._memory is None or self._memory.differences(self._config):
                stages = stages_in(self.workdir)
                run_config.refuse_contradiction(self.workdir, self._config, stages)
                if _MODEL in self.inputs:
                    self._refuse_other_model(stages[_MODEL])
        for name in (MANIFEST, UNFINISHED):
            storage.fetch(self.dir / name)
        is_finished = (self.dir / MANIFEST).is_file() and not (self.dir / UNFINISHED).is_file()
        if self.replaces or self.grows or not is_finished:
            try:
                self.dir.mkdir(parents=True, exist_ok=True)
                self._lock.acquire()
                self.dir.mkdir(exist_ok=True)  # the command that held the lock may have removed it
            except OSError as error:
                self._lock.release()
                self._remove_if_empty()
                raise UserError(
                    f"could not write {self.dir} ({error.strerror or error}): choose another --workdir"
                ) from error
        try:
            storage.fetch(self.dir)  # with the lock in hand, so that nothing there changes any more
            self._open(identity)
        except BaseException:
            self._remove_if_empty()
            self._lock.release()
            raise

    def _open(self, identity: Mapping[str, Any]) -> None:
        """Reads how far an earlier attempt came; an empty folder is marked as begun."""
        manifest, unfinished = self.dir / MANIFEST, self.dir / UNFINISHED
        files.remove_leftovers(self.dir)
        files.remove_leftovers(self.dir.parent, f".{self.dir.name}.*.tmp")
        if self._is_empty():
            files.remove(self.dir)
        for path in (manifest, unfinished):
            if not path.is_file():
                continue
            there = read_manifest(path)
            if self.replaces and identity != {key: there.get(key) for key in identity}:
                self.dir = self.dir / _NEXT
                break
            section, before = grown(there["section"], self.section, self.grows)
            identity = dict(identity) | {"section": section, "inputs": self._as_there(identity["inputs"], there)}
            self._refuse_other(identity, there | {"section": before})
            if section != there["section"] or (path == unfinished and self._is_otherwise_computed(there)):
                self._extend(identity, there)
                return
            self.finished = path == manifest
            self.manifest = {name: value for name, value in there.items() if name not in ("files", "checksum")}
            if self._memory is None:
                self._remember()
            if self.finished:
                files.remove(unfinished)
                self._remove_parts()
                print(f"{self.name}: already finished in {storage.named(str(self.dir))}", file=sys.stderr)
            return
        self.dir.mkdir(exist_ok=True)
        if any(self.dir.iterdir()):
            raise UserError(f"{self.dir} holds files that no stage wrote: choose another --workdir or move them")
        self._remember()
        self._mark_begun(identity)

    def _extend(self, identity: Mapping[str, Any], there: Mapping[str, Any]) -> None:
        """Begins a larger result from the one, or from the attempt at one, that is there."""
        unfinished = self.dir / UNFINISHED
        attempt = files.read_object(unfinished) if unfinished.is_file() else {}
        if not attempt and not _stops:  # an attempt may already have replaced files
            refuse_damaged(self.workdir, self.name)
        self.extended = attempt.get("section") != identity["section"]
        if self.extended or self._is_otherwise_computed(attempt):
            jsonl.set_parts_aside(self.dir)
        print(f"{self.name}: continues from what is in {storage.named(str(self.dir))}", file=sys.stderr)
        self._mark_begun({"chosen": attempt.get("chosen", there.get("chosen", {}))} | dict(identity))

    def _is_otherwise_computed(self, attempt: Mapping[str, Any]) -> bool:
        """Whether the parts of an attempt may be others, where they can be set aside."""
        return bool(self.grows) and attempt.get("computing") != self.computing

    def _as_there(self, inputs: Mapping[str, str], there: Mapping[str, Any]) -> dict[str, str]:
        """The digests of inputs, of those that have only grown since as the result that is there has them."""
        before = there.get("grown_from", {})
        same = [name for name in self.may_grow if before.get(name) == self._grown_from[name]]
        return dict(inputs) | {name: there["inputs"][name] for name in same}

    def _mark_begun(self, identity: Mapping[str, Any]) -> None:
        self.manifest = dict(identity) | {
            "stage": self.name,
            "grows": sorted(self.grows),
            "grown_from": self._grown_from,
            "versions": _versions(),
            "commit": _commit(),
            "device": str(jax.devices()[0].device_kind),
            "device_count": len(processes.devices()),
            "processes": processes.count(),
            "computing": self.computing,
            "start": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }
        files.write_json(self.dir / UNFINISHED, checksums.sign(self.manifest))

    def _remember(self) -> None:
        if self._config is not None:
            run_config.remember(self.workdir, self._config, stages_in(self.workdir))

    def _remove_if_empty(self) -> None:
        """Removes the folder where not even the record of an attempt could be written."""
        with contextlib.suppress(OSError):
            self.dir.rmdir()

    def _is_empty(self) -> bool:
        """Whether an attempt has begun that left nothing: it decides nothing for the next one."""
        found = [path for path in self.dir.rglob("*") if not path.is_dir()]
        return found == [self.dir / UNFINISHED]

    def _is_untouched(self) -> bool:
        """Whether an attempt at a larger result has left nothing."""
        return (self.dir / MANIFEST).is_file() and not any((self.dir / name).is_dir() for name in jsonl.LEFT)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not processes.is_first():
            return
        if error is not None and not self.finished and self._is_empty():
            files.remove(self.dir)
            if self._config is not None:
                run_config.restore(self.workdir, self._memory)
        if error is not None and self._is_untouched():
            files.remove(self.dir / UNFINISHED)
        if self.dir.name == _NEXT:
            files.remove(self.dir)
        self._lock.release()

    def record(self, chosen: Mapping[str, Any]) -> None:
        """Records what open fields of the section were set to: `manifest["chosen"]`, when the stage resumes, too."""
        self.manifest = self.manifest | {"chosen": plain(chosen)}
        if processes.is_first():
            files.write_json(self.dir / UNFINISHED, checksums.sign(self.manifest))

    def finish(self, counts: Mapping[str, Any]) -> None:
        """Marks the stage as finished.

        Args:
          counts: what the stage did, as plain numbers; the manifest records it.
        """
        if processes.is_first() and self.dir.name == _NEXT:
            self._take_place()
        storage.send(self.dir)
        processes.barrier()
        end = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        self.manifest = self.manifest | {"end": end, "counts": plain(counts)}
        written = self._checksums()
        if processes.is_first():
            files.write_json(self.dir / MANIFEST, checksums.sign(self.manifest | {"files": written}))
            files.remove(self.dir / UNFINISHED)
            self._remove_parts()
        self.manifest = processes.broadcast(self.manifest)
        self.finished = True

    def _checksums(self) -> dict[str, dict[str, Any]]:
        """Of the files of the result, for the first process; where each has those that it wrote, of all of them."""
        if storage.is_remote(self.dir):
            parts = processes.gather(checksums.of_folder(self.dir, _APART))
            return {name: entry for part in parts for name, entry in sorted(part.items())}
        return checksums.of_folder(self.dir, _APART) if processes.is_first() else {}

    def _take_place(self) -> None:
        """Removes the old result, of which the new one has been a part, and gives the new one its name."""
        old = self.dir.parent
        storage.forget(old)
        new = self.dir.rename(old.with_name(f".{old.name}.new.tmp"))
        aside = old.rename(old.with_name(f".{old.name}.old.tmp"))
        self.dir = new.rename(old)
        files.remove(aside)

    def _remove_parts(self) -> None:
        """Removes what the result has been joined from."""
        for name in jsonl.LEFT:
            files.remove(self.dir / name)

    def _inputs(self) -> dict[str, dict[str, Any]]:
        """The manifests of the inputs."""
        manifests = {}
        for name in self.inputs:
            path = self.workdir / name / MANIFEST
            if not path.is_file():
                raise UserError(
                    f"stage {self.name} reads {path.parent}, which no finished stage wrote: run "
                    f"{_command_of(name, self.workdir)} first"
                )
            # What is asked what it would do has a copy of the manifests alone.
            manifests[name] = read_manifest(path) if _stops else refuse_damaged(self.workdir, name)
            for source in manifests[name]["inputs"]:
                storage.fetch(self.workdir / source / MANIFEST)
            for problem in made_of_others(self.workdir, name, manifests[name]):
                command = _command_of(name, self.workdir)
                raise UserError(f"{problem}: restore it, or delete {path.parent} and run {command} again")
        return manifests

    def _refuse_other_model(self, converted: Mapping[str, Any]) -> None:
        """Refuses a configuration that asks for another model than the one converted, whose section is given."""
        different = self._memory.differences(self._config) if self._memory and self._config else {}
        for field, there in converted.items():
            asked = different.get(f"{_MODEL}.{field}", there)
            if asked != there and not (field == "checkpoint" and _is_same_folder(asked, there)):
                raise UserError(
                    f"{_MODEL}.{field} is {shown(asked)} now, and {self.workdir / _MODEL} was converted with "
                    f"{shown(there)}: leave that field or --config out, choose another --workdir, or delete "
                    f"{self.workdir / _MODEL} and run {_command_of(_MODEL, self.workdir)} first"
                )

    def _refuse_other(self, ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> None:
        theirs = {key: theirs.get(key) for key in ours}
        if ours != theirs:
            raise UserError(
                f"{self.dir} holds a result of another configuration, which differs in "
                f"{_first_difference(ours, theirs)}: choose another --workdir or delete that folder"
            )

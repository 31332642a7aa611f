"""`--dry_run` of every command: the devices of all hosts, the run directory that they share, what a stage would do."""

import contextlib
import functools
import io
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from maira_jax.errors import UserError
from maira_jax.run import files, processes, storage
from maira_jax.run.stages import run_config
from maira_jax.run.stages import stage as run_stage

Run = Callable[[ConfigDict, Path], Mapping[str, Any]]
_COPIED = (
    run_config.FILE,
    *(f"{depth}/{name}" for name in (run_stage.MANIFEST, run_stage.UNFINISHED) for depth in ("*", "*/*", "*/*/*")),
)


@contextlib.contextmanager
def leaving_no_trace(workdir: Path) -> Iterator[None]:
    """Removes the run directory afterwards, and the folders around it, as far as they did not exist before."""
    missing = [folder for folder in (workdir, *workdir.parents) if not folder.exists()]
    try:
        yield
    finally:
        if processes.is_first():
            for folder in missing:
                with contextlib.suppress(OSError):
                    folder.rmdir()


def rehearse(stages: Mapping[str, Run], estimates: str, config: ConfigDict, workdir: Path) -> Mapping[str, Any]:
    """What `--dry_run` does instead of running the stages; called by every process.

    Args:
      stages: the stages of the command, by name.
      estimates: the field of the configuration that has the only one say what it would take; empty if there is none.
      config: the configuration.
      workdir: the run directory.

    Returns:
      What the stage would take, where it says so.

    Raises:
      UserError: a device or the run directory cannot be used, or the stage cannot say what it would take.
    """
    print(devices())
    print(storage.named(folder(workdir)))
    processes.barrier()  # until all have deleted their files
    storage.fetch(workdir, (run_stage.MANIFEST, run_stage.UNFINISHED))
    storage.fetch(workdir / run_config.FILE)
    would_work = False
    for run in stages.values():
        sentence, would_work = processes.first_only(functools.partial(intention, run, config, workdir))
        print(storage.named(sentence))
    print(processes.first_only(functools.partial(_costs, list(stages), config)), end="")
    if not (estimates and would_work):
        return {}
    config.update_from_flattened_dict({estimates: True})
    return processes.first_only(functools.partial(run, config, workdir))


def _costs(names: Sequence[str], config: ConfigDict) -> str:
    """What those stages take whose costs are counted; of an image encoder's none are."""
    # Not at the top: it imports what most commands do not need.
    from steer import run_costs

    if config.harvest.encoder or not set(names) & set(run_costs.COUNTED):
        return ""
    try:
        return f"{run_costs.text(config, names)}\n"
    except UserError as error:
        return f"what it takes is not known: {error}\n"


def devices() -> str:
    """Adds one number over the devices of all hosts, in one program.

    Raises:
      UserError: the sum is wrong.
    """
    found = processes.devices()
    mesh = Mesh(np.asarray(found), ("all",))
    ones = jax.make_array_from_callback(
        (len(found),), NamedSharding(mesh, P("all")), lambda index: np.ones(len(found), np.int32)[index]
    )
    total = int(jax.jit(jax.numpy.sum, out_shardings=NamedSharding(mesh, P()))(ones))
    if total != len(found):
        raise UserError(f"a sum over {len(found)} devices gives {total}: run the devices' own diagnostics")
    hosts = processes.count()
    return f"{hosts} x {len(found) // hosts} devices ({found[0].device_kind}), a sum over all is right"


def folder(workdir: Path) -> str:
    """Has every process write a file in the run directory, see those of all, and delete its own.

    Raises:
      UserError: a process cannot write, or does not see the others' files.
    """
    prefix = f"dry-run-{processes.broadcast(uuid.uuid4().hex)}-"
    own = workdir / f"{prefix}{processes.index()}"
    try:
        own.parent.mkdir(parents=True, exist_ok=True)
        own.touch()
        storage.send(own)
        processes.barrier()
        seen = processes.gather(all(storage.exists(workdir / f"{prefix}{i}") for i in range(processes.count())))
        files.remove(own)
    except OSError as error:
        raise UserError(f"could not write {workdir} ({error.strerror or error}): choose another --workdir") from error
    finally:
        with contextlib.suppress(OSError):
            files.remove(own)
    if not all(seen):
        raise UserError(
            f"process {seen.index(False)} does not see in {workdir} what the others write: "
            "choose a --workdir that all hosts share"
        )
    return f"{workdir}: every process writes there, sees the others' files and deletes its own"


def intention(run: Run, config: ConfigDict, workdir: Path) -> tuple[str, bool]:
    """What a stage would do: it begins in a copy of the manifests and of what the run remembers, and stops there.

    Returns:
      A sentence, and whether the stage would do its work.
    """
    with tempfile.TemporaryDirectory() as temporary:
        copy = Path(temporary) / "run"
        for name in _COPIED:
            for path in workdir.glob(name):
                (copy / path.relative_to(workdir)).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, copy / path.relative_to(workdir))
        try:
            with contextlib.redirect_stderr(io.StringIO()), processes.alone(), run_stage.stopping():
                run(config, copy)
        except run_stage.StageReached as reached:
            stage = reached.stage
            damage = _damage(workdir, stage.inputs)
        except UserError as error:
            return f"would end with: {error}".replace(str(copy), str(workdir)), False
        else:
            return "would run no stage", False
    if damage:
        return f"would end with: {damage}", False
    inputs = f" from {', '.join(stage.inputs)} (finished)" if stage.inputs else ""
    if stage.finished:
        return f"{workdir / stage.name} is finished already", False
    return f"would {'resume' if (workdir / stage.name).exists() else 'begin'} {workdir / stage.name}{inputs}", True


def _damage(workdir: Path, inputs: Sequence[str]) -> str:
    """What is wrong with the files of finished stages; empty where nothing is."""
    try:
        for name in inputs:
            run_stage.refuse_damaged(workdir, name)
    except UserError as error:
        return str(error)
    return ""

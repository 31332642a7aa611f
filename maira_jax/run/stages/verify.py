"""Whether a run directory is what its stages wrote, of each other: every file, and every chunk of every array."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts

from maira_jax.errors import UserError, first_line
from maira_jax.run import storage
from maira_jax.run.progress import progress
from maira_jax.run.stages import checksums
from maira_jax.run.stages.run_config import FILE, RunMemory
from maira_jax.run.stages.stage import MANIFEST, made_of_others, read_manifest, stages_in

_ROWS_BYTES = 2**26  # of an array that are read at a time


def verify(workdir: Path) -> dict[str, Any]:
    """Reads all that the finished stages of `workdir` left, and compares it with their checksums.

    Returns:
      How many `stages`, `files` and `arrays` were read.

    Raises:
      UserError: something is missing or was changed; all of it is printed before.
    """
    found: list[str] = []
    try:
        RunMemory.read(Path(workdir) / FILE)
    except UserError as error:
        found.append(str(error))
    n_files = n_arrays = 0
    folders = [folder for folder in map(Path(workdir).joinpath, stages_in(workdir)) if (folder / MANIFEST).is_file()]
    if not folders:
        raise UserError(f"{workdir} holds no finished stage: check --workdir")
    for folder in progress(folders, unit="stages", desc="verify"):
        storage.fetch(folder)
        try:
            manifest = read_manifest(folder / MANIFEST)
            recorded = manifest["files"]
            found += _sources(Path(workdir), folder, manifest)
        except UserError as error:
            found.append(str(error))
            continue
        found += checksums.problems(folder, recorded, may_be_absent=storage.is_remote(folder))
        arrays = [folder / name for name in recorded if Path(name).name == checksums.ARRAY]
        found += [problem for array in arrays for problem in _damage(array.parent)]
        n_files, n_arrays = n_files + len(recorded), n_arrays + len(arrays)
    for problem in found:
        print(problem, file=sys.stderr)
    if found:
        raise UserError(
            f"{len(found)} of what the stages of {workdir} wrote is missing or was changed, see above: restore it, or "
            "delete the folders of those stages and run them again"
        )
    return {"stages": len(folders), "files": n_files, "arrays": n_arrays}


def _sources(workdir: Path, folder: Path, manifest: Mapping[str, Any]) -> list[str]:
    """What is wrong with the stages that a stage was made of, a clause for each."""
    missing = [workdir / name for name in manifest["inputs"] if not (workdir / name / MANIFEST).is_file()]
    others = made_of_others(workdir, folder.relative_to(workdir).as_posix(), manifest)
    return [f"{path}, which {folder} was made of, is missing or not finished" for path in missing] + others


def _damage(array: Path) -> list[str]:
    """What is wrong with an array, whose chunks are read one after the other: nothing, or one clause."""
    spec = {"driver": "zarr3", "kvstore": storage.kvstore(array), "fill_missing_data_reads": False}
    try:
        values = ts.open(spec, open=True, read=True).result()
        n_rows = values.shape[0] if values.ndim else 1
        step = max(1, _ROWS_BYTES // max(1, values.dtype.numpy_dtype.itemsize * int(np.prod(values.shape[1:]))))
        for start in range(0, n_rows, step):
            (values[start : min(start + step, n_rows)] if values.ndim else values).read().result()
    except (ValueError, OSError) as error:
        return [f"{array} cannot be read ({first_line(error)})"]
    return []

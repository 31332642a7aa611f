"""Reads the results that the stages of a run have left."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from interp.sets import FOLDER, SCORED
from maira_jax.errors import UserError, first_line
from maira_jax.run import files
from maira_jax.run.stages.stage import MANIFEST


def optional_stages(workdir: Path) -> Sequence[str]:
    """The folders of those stages that the page shows where they have run, and that have."""
    folders = [workdir / name for name in ("export", "label", "similar", "localize", "faithfulness")]
    for pattern in ("steer/*", "evaluation/*", f"{FOLDER}/*", f"{FOLDER}/*/{SCORED}"):
        folders += sorted(workdir.glob(pattern))
    return [str(folder.relative_to(workdir)) for folder in folders if is_finished(folder)]


def sweeps(workdir: Path, first: str) -> list[str]:
    """The finished steering sweeps, by name, the one called `first` first."""
    names = sorted(path.parent.name for path in (workdir / "steer").glob(f"*/{MANIFEST}"))
    return sorted(names, key=lambda name: name != first)


def is_finished(folder: Path) -> bool:
    """Whether a stage has written the manifest of its folder."""
    return (folder / MANIFEST).is_file()


def json_if_finished(path: Path) -> Any:
    """The content of a JSON file in a stage's folder; None where that stage has not finished."""
    return files.read_json(path) if is_finished(path.parent) else None


def read_table(path: Path) -> pa.Table:
    """The content of a parquet file.

    Raises:
      UserError: the file is missing or cannot be read.
    """
    try:
        return pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(f"{path} cannot be read ({first_line(error)}): run the stage that writes it again") from error

"""Sets of interpretations of a run's features: its own, and those that were imported.

Its own is the set `interp` and lies in `WORKDIR/interp`. The others lie in `WORKDIR/interpretations/NAME`, whose
`features.parquet` has the columns of `SCHEMA`. Where their explanations were scored (`interpret.set`),
`scored/features.parquet` there holds the scores, in the columns of our own.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from maira_jax.errors import UserError, first_line
from maira_jax.run import storage
from maira_jax.run.columns import column

OWN_SET = "interp"
FOLDER, SCORED = "interpretations", "scored"
FEATURES = "features.parquet"
SCHEMA = pa.schema(
    [
        column("feature", pa.int32(), "ascending, each once; only those that the set knows"),
        column("name", pa.string(), "a few words"),
        column("explanation", pa.string(), "when the feature is active"),
        column("score", pa.float64(), "that came with the explanation, on its own scale"),
    ]
)
_OF_ALL = pa.schema([SCHEMA.field(name) for name in ("feature", "name", "explanation")])


def stage_name(name: str) -> str:
    """The stage, which is also the folder in its run directory, that wrote the set called `name`."""
    return OWN_SET if name == OWN_SET else f"{FOLDER}/{name}"


def set_names(workdir: Path) -> list[str]:
    """The sets of a run: its own first, if it was interpreted, then the others in the order of their names."""
    storage.fetch(Path(workdir) / FOLDER, (FEATURES,))
    storage.fetch(Path(workdir) / OWN_SET, (FEATURES,))
    own = [OWN_SET] if (Path(workdir) / OWN_SET / FEATURES).is_file() else []
    return own + sorted(path.parent.name for path in (Path(workdir) / FOLDER).glob(f"*/{FEATURES}"))


def read_set(workdir: Path, name: str) -> pa.Table:
    """The features that a set knows, one row each, ascending by `feature`.

    Every set has the columns of `SCHEMA` but for `score`, which only imported ones have; see
    `interp.features.table.SCHEMA` for the others. The scores of an imported set are there as far as its explanations
    were scored, and belong to the explanations in the table: those that have changed since have none.

    Args:
      workdir: the run directory.
      name: one of `set_names`.

    Raises:
      UserError: there is no such set, or its table cannot be read.
    """
    known = set_names(workdir)
    if name not in known:
        there = f"choose from {', '.join(known)}" if known else "run launch.interpret first"
        raise UserError(f"{workdir} has no set of interpretations {name!r}: {there}")
    folder = Path(workdir) / stage_name(name)
    table = _read(folder / FEATURES)
    scores = folder / SCORED / FEATURES
    if name == OWN_SET or not scores.is_file():
        return table
    scored = _read(scores)
    found = scored.take(pc.index_in(table["feature"], scored["feature"].combine_chunks()))  # null where there is none
    same = pc.fill_null(pc.equal(table["explanation"], found["explanation"]), False)
    own = set(table.column_names)
    rows = found.take(pc.if_else(same, pa.array(range(table.num_rows)), None))
    for added in rows.column_names:
        if added not in own:
            table = table.append_column(added, rows[added])
    return table


def _read(path: Path) -> pa.Table:
    try:
        table = pq.read_table(path)
        table.validate(full=True)  # that texts are UTF-8
        found = table.select(_OF_ALL.names).cast(_OF_ALL)
    except (OSError, KeyError, ValueError, pa.ArrowException) as error:
        raise UserError(f"{path} cannot be read ({first_line(error)}): interpret or import again") from error
    features = found["feature"].to_numpy()
    if found["feature"].null_count or (np.diff(features) <= 0).any():
        raise UserError(f"{path} has features twice, or in another order: interpret or import again")
    others = [name for name in table.column_names if name not in _OF_ALL.names]
    return pa.table(dict(zip(_OF_ALL.names, found, strict=True)) | {name: table[name] for name in others})

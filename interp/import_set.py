"""Interpretations from files, as a set of the run's features: CSV, JSON Lines or parquet, one row per feature."""

import csv
import itertools
import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ml_collections
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from interp import sets
from maira_jax.errors import UserError, first_line
from maira_jax.run import files, parquet
from maira_jax.run.config import Section, setting
from maira_jax.run.lock import FolderLock
from maira_jax.run.stages.stage import Stage

_MAX_LISTED = 20  # columns in a message


class _Columns(NamedTuple):
    """What a reader finds: the names of all columns of a file, and those that were wanted."""

    names: list[str]
    wanted: pa.Table


def _read_csv(path: Path, wanted: Collection[str], max_rows: int) -> _Columns:
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        names = next(filter(None, csv.reader(file)), [])
    there = [name for name in names if name in wanted]
    if not there:  # which pyarrow would take for all
        return _Columns(names, pa.table({}))
    table = pyarrow.csv.read_csv(
        path,
        parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True),
        convert_options=pyarrow.csv.ConvertOptions(include_columns=there),
    )
    _refuse_rows(path, table.num_rows, max_rows)
    return _Columns(names, table)


def _read_json_lines(path: Path, wanted: Collection[str], max_rows: int) -> _Columns:
    """One row per line that is not blank; pyarrow's own reader crashes where a line is no object."""
    names: dict[str, None] = {}
    rows: list[dict[str, Any]] = []
    for line in path.read_bytes().splitlines():
        if line.strip():
            row = files.parse_json(line)
            if not isinstance(row, dict):
                raise ValueError("a line is no object")
            names |= dict.fromkeys(row)
            rows.append({name: row[name] for name in wanted if name in row})
            # pyarrow makes a column of each key of an object.
            if any(isinstance(value, dict | list) for value in rows[-1].values()):
                raise ValueError(f"row {len(rows)} has a list or an object for a value")
            _refuse_rows(path, len(rows), max_rows)
    there = [name for name in names if name in wanted]
    return _Columns(list(names), pa.table({name: [row.get(name) for row in rows] for name in there}))


def _read_parquet(path: Path, wanted: Collection[str], max_rows: int) -> _Columns:
    _refuse_rows(path, pq.read_metadata(path).num_rows, max_rows)
    return _Columns(pq.read_schema(path).names, parquet.read_columns(path, wanted))


def _refuse_rows(path: Path, n: int, max_rows: int) -> None:
    if n > max_rows:
        raise UserError(f"{path} has more rows than the autoencoder's {max_rows} features: leave one row of each")


_READERS: dict[str, Callable[[Path, Collection[str], int], _Columns]] = {
    ".csv": _read_csv,
    ".jsonl": _read_json_lines,
    ".ndjson": _read_json_lines,
    ".parquet": _read_parquet,
}


class ImportSetSection(Section, name="import_set"):
    """Interpretations from files, as a named set of the run's features."""

    files: tuple[str, ...] = setting(
        (), "Files of interpretations, .csv, .jsonl or .parquet; empty: none.", remembered=False
    )
    set: str = setting(
        "imported", "Name of the set, which may be there already: then the files add to it.", remembered=False
    )
    columns: tuple[str, ...] = setting(
        (),
        f"Where the files name a column otherwise: OURS=THEIRS; ours are {', '.join(sets.SCHEMA.names)}.",
        remembered=False,
    )

    def check(self) -> None:
        if not re.fullmatch(r"\w[\w.-]*", self.set) or self.set == sets.OWN_SET:
            raise UserError(f"import_set.set {self.set!r} cannot name a set: use other letters, digits, '-' and '_'")
        for text in self.columns:
            ours, _, theirs = text.partition("=")
            if ours not in sets.SCHEMA.names or not theirs:
                raise UserError(
                    f"import_set.columns holds {text!r}: give OURS=THEIRS, where ours is one of "
                    f"{', '.join(sets.SCHEMA.names)}"
                )

    @property
    def names(self) -> dict[str, str]:
        """Their column of each of ours."""
        given = dict(text.split("=", 1) for text in self.columns)
        return {name: given.get(name, name) for name in sets.SCHEMA.names}


def run(config: ml_collections.ConfigDict, workdir: Path) -> dict[str, Any]:
    """Adds the rows of `config.import_set.files` to a set of `workdir`, which is made if it is not there.

    The set belongs to the autoencoder in `workdir/sae`. A file that was imported already changes nothing. What the set
    has scores of by `launch.interpret` keeps them.

    Returns:
      What the manifest of the set counts: `features`, and per imported file its hash and columns.

    Raises:
      UserError: a file cannot be read, or contradicts the autoencoder or what the set says already.
    """
    section, workdir = ImportSetSection.of(config), Path(workdir)
    paths = [Path(name).expanduser() for name in section.files]
    if not paths:
        raise UserError("import_set.files names no file: give some with --interpretations")
    with Stage(workdir, sets.stage_name(section.set), {"set": section.set}, inputs=("sae",), config=config) as stage:
        lock = FolderLock(stage.dir)
        if stage.finished:  # the set is added to
            lock.acquire()
        try:
            counts = _add(stage, paths, section)
            if not stage.finished or counts != stage.manifest["counts"]:
                stage.finish(counts)
        finally:
            lock.release()
    return counts


def _add(stage: Stage, paths: Sequence[Path], section: ImportSetSection) -> dict[str, Any]:
    """Writes the set with the rows of the files added, and returns what its manifest counts."""
    n_features = files.read_object(stage.workdir / "sae" / "sae.json")["n_features"]
    written = stage.dir / sets.FEATURES
    rows: dict[int, dict[str, Any]] = {}
    if written.is_file():  # also one of an attempt that was killed
        rows = {row["feature"]: row for row in pq.read_table(written).to_pylist()}
    added = {}
    for path in paths:
        for row in read_rows(path, section.names, n_features).to_pylist():
            rows[row["feature"]] = _merged(rows.get(row["feature"], {}), row, path, section.set)
        added[files.sha256(path)] = {"file": path.name, "columns": list(section.columns)}
    with files.atomic_path(written) as temporary:
        pq.write_table(pa.Table.from_pylist([rows[feature] for feature in sorted(rows)], sets.SCHEMA), temporary)
    before = stage.manifest.get("counts", {}).get("imported", {})
    imported = before | added | {"sha256": files.sha256(written)}  # so that what reads the set knows it by its content
    return {"features": len(rows), "imported": imported}


def _merged(there: Mapping[str, Any], new: Mapping[str, Any], path: Path, name: str) -> dict[str, Any]:
    """A row of the set with what another one of the same feature adds.

    Raises:
      UserError: they contradict each other.
    """
    for column, value in new.items():
        known = there.get(column)
        if None not in (known, value) and known != value:
            raise UserError(
                f"{path} has {column} {_short(value)} for feature {new['feature']}, and the set {name!r} has "
                f"{_short(known)}: import it under another --set"
            )
    return dict(there) | {column: value for column, value in new.items() if value is not None}


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:59]}…"


def read_rows(path: Path, names: Mapping[str, str], n_features: int) -> pa.Table:
    """The rows of a file of interpretations, in the columns of `sets.SCHEMA`.

    A blank text is none. Where there is a name alone, it is the explanation as well.

    Args:
      path: the file.
      names: their name for each of our columns.
      n_features: number of features of the autoencoder.

    Raises:
      UserError: the file cannot be read, lacks a column, or has a feature twice or one that does not exist.
    """
    there, table = _read(path, set(names.values()), n_features)
    for ours, theirs in names.items():
        if theirs not in there and (ours == "feature" or ours != theirs):
            listed = ", ".join(there[:_MAX_LISTED]) + (", …" if len(there) > _MAX_LISTED else "")
            raise UserError(
                f"{path} has no column {theirs!r}, but {listed}: name its columns, as in "
                "--columns=feature=latent,explanation=description"
            )
    columns = {}
    for field in sets.SCHEMA:
        theirs = names[field.name]
        if theirs in table.column_names:
            columns[field.name] = _cast(path, theirs, table[theirs], field.type)
        else:
            columns[field.name] = pa.nulls(table.num_rows, field.type)
    if not {names["name"], names["explanation"], names["score"]} & set(table.column_names):
        raise UserError(f"{path} has neither names, nor explanations, nor scores: name its columns with --columns")
    columns["explanation"] = pc.coalesce(columns["explanation"], columns["name"])
    found = pa.table(columns, schema=sets.SCHEMA)
    _check_features(path, found["feature"], n_features)
    return found


def _read(path: Path, wanted: Collection[str], n_features: int) -> _Columns:
    reader = _READERS.get(path.suffix)
    if reader is None:
        raise UserError(f"{path} is not one of {', '.join(_READERS)}: convert it, or rename it")
    if not path.is_file():
        raise UserError(f"{path} does not exist: check the path")
    try:
        found = reader(path, wanted, n_features)
        found.wanted.validate(full=True)  # that texts are UTF-8
    except (OSError, OverflowError, ValueError, csv.Error, pa.ArrowException) as error:
        raise UserError(f"{path} cannot be read ({first_line(error)}): restore the file") from error
    if len(set(found.names)) < len(found.names):
        raise UserError(f"{path} has two columns of one name: rename one of them")
    return found


def _cast(path: Path, name: str, column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    """A column as `kind`; blank texts become null."""
    try:
        if pa.types.is_string(kind):
            text = pc.utf8_trim_whitespace(column.cast(kind))
            return pc.if_else(pc.equal(text, ""), None, text)
        found = column.cast(kind)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise UserError(f"{path}: column {name!r} is not of {kind} ({first_line(error)}): correct it") from error
    if pa.types.is_floating(kind):
        return pc.if_else(pc.is_finite(found), found, None)
    return found


def _check_features(path: Path, column: pa.ChunkedArray, n_features: int) -> None:
    if column.null_count:
        raise UserError(f"{path} has a row without a feature: give its number, or remove the row")
    numbers = column.to_pylist()
    for number in numbers:
        if not 0 <= number < n_features:
            raise UserError(f"{path} has feature {number}, but those of the autoencoder are 0 to {n_features - 1}")
    numbers.sort()
    for number, following in itertools.pairwise(numbers):
        if number == following:
            raise UserError(f"{path} has feature {number} twice: leave one row of it")

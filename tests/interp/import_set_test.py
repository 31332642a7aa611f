"""Interpretations of files become a set, which can be added to and never says two things of a feature."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from configs import phantom
from interp import import_set, sets
from maira_jax.errors import UserError
from maira_jax.run import files, parquet
from maira_jax.run.stages.checksums import sign
from maira_jax.run.stages.stage import Stage

ROWS = [
    {"latent": 3, "description": 'a "large" heart,\nor a wide one', "auroc": 0.75, "other": 1},
    {"latent": 11, "description": "  tubes ", "auroc": None, "other": 2},
]
COLUMNS = ("feature=latent", "explanation=description", "score=auroc")
FOUND = [
    {"feature": 3, "name": None, "explanation": 'a "large" heart,\nor a wide one', "score": 0.75},
    {"feature": 11, "name": None, "explanation": "tubes", "score": None},
]


@pytest.fixture
def workdir(tmp_path):
    with Stage(tmp_path / "run", "sae", {}) as stage:
        files.write_json(stage.dir / "sae.json", {"n_features": 12})
        stage.finish({})
    return tmp_path / "run"


def add(workdir, *paths, name="released", columns=COLUMNS):
    config = phantom.get_config()
    config.import_set.update({"files": tuple(map(str, paths)), "set": name, "columns": tuple(columns)})
    return import_set.run(config, workdir)


def as_csv(path, rows):
    quoted = [['"' + str(value).replace('"', '""') + '"' if value is not None else "" for value in row.values()]
              for row in rows]  # fmt: skip
    path.write_text("\n".join(",".join(row) for row in [list(rows[0]), *quoted]) + "\n")


def as_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def as_parquet(path, rows):
    pq.write_table(pa.Table.from_pylist(rows), path)


WRITERS = {".csv": as_csv, ".jsonl": as_jsonl, ".parquet": as_parquet}


def written(tmp_path, rows=ROWS, ending=".jsonl", name="names"):
    path = tmp_path / f"{name}{ending}"
    WRITERS[ending](path, rows)
    return path


@pytest.mark.parametrize("ending", WRITERS)
def test_a_file_becomes_a_set(workdir, tmp_path, ending):
    assert add(workdir, written(tmp_path, ending=ending))["features"] == 2
    assert sets.set_names(workdir) == ["released"]
    assert sets.read_set(workdir, "released").to_pylist() == FOUND


def test_a_name_alone_is_the_explanation_as_well(workdir, tmp_path):
    add(workdir, written(tmp_path, [{"feature": 0, "name": "heart"}]), columns=())
    (row,) = sets.read_set(workdir, "released").to_pylist()
    assert row == {"feature": 0, "name": "heart", "explanation": "heart", "score": None}


def test_a_set_is_added_to(workdir, tmp_path):
    first, second = written(tmp_path), written(tmp_path, [{"feature": 4, "explanation": "wires"}], name="more")
    scores = written(tmp_path, [{"feature": 11, "score": 0.5}], name="scores")
    add(workdir, first)
    begun = (workdir / "interpretations" / "released" / "manifest.json").read_bytes()
    add(workdir, first)
    assert (workdir / "interpretations" / "released" / "manifest.json").read_bytes() == begun
    add(workdir, second, scores, columns=())
    assert sets.read_set(workdir, "released").to_pylist() == [
        FOUND[0],
        {"feature": 4, "name": None, "explanation": "wires", "score": None},
        FOUND[1] | {"score": 0.5},
    ]
    assert (workdir / "interpretations" / "released" / "manifest.json").read_bytes() != begun
    assert [path.name for path in (workdir / "interpretations").iterdir()] == ["released"]  # no lock is left


@pytest.mark.parametrize("killed_in", ["pq.write_table", "files.sha256"])
def test_killed_while_it_begins_or_adds_it_resumes(workdir, tmp_path, monkeypatch, killed_in):
    files_of = [(written(tmp_path), COLUMNS), (written(tmp_path, [{"feature": 4, "name": "wires"}], name="more"), ())]
    for path, columns in files_of:
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):

            def killed(*_):
                raise KeyboardInterrupt

            patch.setattr(f"interp.import_set.{killed_in}", killed)
            add(workdir, path, columns=columns)
        add(workdir, path, columns=columns)
    assert sets.read_set(workdir, "released")["feature"].to_pylist() == [3, 4, 11]
    manifest = files.read_json(workdir / "interpretations" / "released" / "manifest.json")
    assert manifest["counts"]["imported"]["sha256"] == files.sha256(
        workdir / "interpretations/released/features.parquet"
    )


def test_another_explanation_is_refused_and_changes_nothing(workdir, tmp_path):
    add(workdir, written(tmp_path))
    other = written(tmp_path, [{"feature": 1, "explanation": "x"}, {"feature": 11, "explanation": "wires"}], name="b")
    with pytest.raises(UserError, match='explanation "wires" for feature 11, and the set \'released\' has "tubes"'):
        add(workdir, other, columns=())
    assert sets.read_set(workdir, "released").to_pylist() == FOUND
    add(workdir, other, name="second", columns=())
    assert sets.set_names(workdir) == ["released", "second"]


REFUSED = {
    "no such column": ({}, (), "has no column 'feature', but latent, description, auroc, other: .* --columns"),
    "no text": ({}, ("feature=latent",), "has neither names, nor explanations, nor scores"),
    "no such feature": ({"latent": 12}, COLUMNS, "has feature 12, but those of the autoencoder are 0 to 11"),
    "negative": ({"latent": -1}, COLUMNS, "has feature -1"),
    "no number": ({"latent": None}, COLUMNS, "has a row without a feature"),
    "not whole": ({"latent": 1.5}, COLUMNS, "column 'latent' is not of int32"),
    "twice": ({"latent": 11}, COLUMNS, "has feature 11 twice"),
    "a score of words": ({}, (*COLUMNS[:2], "score=description"), "column 'description' is not of double"),
}


@pytest.mark.parametrize(("change", "columns", "sentence"), REFUSED.values(), ids=REFUSED)
def test_a_file_that_does_not_fit_is_refused(workdir, tmp_path, change, columns, sentence):
    path = written(tmp_path, [ROWS[0] | change, ROWS[1]])
    with pytest.raises(UserError, match=f"names.jsonl.*{sentence}"):
        add(workdir, path, columns=columns)
    assert not (workdir / "interpretations" / "released").exists()


@pytest.mark.parametrize("ending", WRITERS)
def test_more_rows_than_features_are_refused(workdir, tmp_path, ending):
    path = written(tmp_path, [{"feature": i % 12, "name": "a"} for i in range(13)], ending)
    with pytest.raises(UserError, match="names.* has more rows than the autoencoder's 12 features: leave one row of"):
        add(workdir, path, columns=())


@pytest.mark.parametrize("ending", WRITERS)
def test_columns_of_no_use_are_not_made(workdir, tmp_path, monkeypatch, ending):
    """Of the keys of objects, which may differ in each row, pyarrow would make columns of all rows."""
    found, read = [], import_set._read
    monkeypatch.setattr(import_set, "_read", lambda *args: found.append(read(*args)) or found[-1])
    rows = [{"feature": i, "name": "a"} | ({f"key {i}": i} if ending == ".jsonl" else {"key": i}) for i in range(12)]
    add(workdir, written(tmp_path, rows, ending), columns=())
    assert found[0].wanted.column_names == ["feature", "name"] and len(found[0].names) > 2


@pytest.mark.parametrize("value", [{"a": 1}, [1]])
def test_lists_and_objects_are_no_values(workdir, tmp_path, value):
    """Of each key of an object pyarrow would make a column of all rows."""
    path = written(tmp_path, [{"feature": 1, "name": "a"}, {"feature": 2, "name": value}])
    with pytest.raises(UserError, match=r"names.jsonl cannot be read \(row 2 has a list or an object for a value\)"):
        add(workdir, path, columns=())


def test_texts_that_are_far_larger_than_their_file_are_refused(workdir, tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "_MAX_TEXTS", 2**10)
    names = pa.DictionaryArray.from_arrays([0] * 12, ["a" * 2**16])
    pq.write_table(pa.table({"feature": range(12), "name": names}), tmp_path / "names.parquet", compression="zstd")
    with pytest.raises(UserError, match=r"names.parquet cannot be read \(its texts are far larger than the file\)"):
        add(workdir, tmp_path / "names.parquet", columns=())


def test_of_many_columns_a_message_lists_a_few(workdir, tmp_path):
    path = written(tmp_path, [{f"key {i}": i for i in range(1000)}])
    with pytest.raises(UserError, match=r"no column 'feature', but key 0, .*, key 19, …: name its columns"):
        add(workdir, path, columns=())


def test_a_file_that_cannot_be_read_is_refused(workdir, tmp_path):
    (tmp_path / "names.parquet").write_text("no parquet")
    for name, sentence in {
        "names.parquet": "cannot be read .*: restore the file",
        "nothing.csv": "does not exist",
        "names.txt": "is not one of .csv, .jsonl, .ndjson, .parquet",
    }.items():
        with pytest.raises(UserError, match=sentence):
            add(workdir, tmp_path / name)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"name": "interp"}, "'interp' cannot name a set"),
        ({"name": "../x"}, "cannot name a set"),
        ({"columns": ["latent"]}, "holds 'latent': give OURS=THEIRS, where ours is one of feature, name"),
    ],
)
def test_what_cannot_be_asked_for_is_refused(workdir, tmp_path, fields, sentence):
    with pytest.raises(UserError, match=sentence):
        add(workdir, tmp_path / "names.csv", **fields)


def test_a_set_belongs_to_an_autoencoder(workdir, tmp_path):
    add(workdir, written(tmp_path))
    manifest = files.read_json(workdir / "sae" / "manifest.json")
    files.write_json(workdir / "sae" / "manifest.json", sign(manifest | {"counts": {"n_features": 13}}))
    with pytest.raises(UserError, match=r"released holds a result of another configuration.*sae"):
        add(workdir, written(tmp_path))

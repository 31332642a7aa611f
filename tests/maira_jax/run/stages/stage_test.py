"""Stages and manifests."""

import multiprocessing
import os
import re
import shutil
import signal
import time
from pathlib import Path

import pytest

from maira_jax.errors import UserError
from maira_jax.run import files
from maira_jax.run.stages import growth, run_config
from maira_jax.run.stages.stage import Stage


def finish(workdir: Path, name: str, section: dict, inputs: tuple[str, ...] = (), **counts) -> None:
    with Stage(workdir, name, section, inputs) as stage:
        if not stage.finished:
            stage.finish(counts)


def test_a_finished_stage_says_so(tmp_path, capsys):
    finish(tmp_path, "model", {"a": (1, 2)}, n=3)
    with Stage(tmp_path, "model", {"a": [1, 2]}) as stage:
        assert stage.finished and stage.manifest["counts"] == {"n": 3}
    assert "already finished" in capsys.readouterr().err
    manifest = files.read_json(tmp_path / "model" / "manifest.json")
    assert {"section", "inputs", "versions", "device", "start", "end", "counts"} <= manifest.keys()


def test_another_config_is_refused_by_field(tmp_path):
    finish(tmp_path, "sae", {"sae": {"k": 16}})
    with pytest.raises(UserError, match=r"sae\.k \(now 32, there 16\)"):
        finish(tmp_path, "sae", {"sae": {"k": 32}})


def test_a_field_that_one_version_has_and_the_other_has_not_is_named(tmp_path):
    finish(tmp_path, "old", {"harvest": {"encoder": "medclip"}})
    with pytest.raises(UserError, match=r"section\.harvest\.block, which the version that wrote it does not have"):
        finish(tmp_path, "old", {"harvest": {"encoder": "medclip", "block": None}})
    finish(tmp_path, "new", {"harvest": {"encoder": "medclip", "block": None}})
    with pytest.raises(UserError, match=r"section\.harvest\.block, which the version at hand does not have"):
        finish(tmp_path, "new", {"harvest": {"encoder": "medclip"}})


@pytest.mark.parametrize("section", [{"sae": {"l1": float("nan")}}, {"sae": {"l1": [0.5, float("inf")]}}])
def test_what_is_not_finite_is_refused_by_field(tmp_path, section):
    with pytest.raises(UserError, match=r"sae\.l1 is (nan|inf)"):
        finish(tmp_path, "sae", section)
    assert not (tmp_path / "sae").exists()


def test_another_input_is_refused(tmp_path):
    finish(tmp_path, "model", {"a": 1})
    finish(tmp_path, "activations", {}, ("model",))
    finish(tmp_path / "other", "model", {"a": 2})
    os.replace(tmp_path / "other" / "model" / "manifest.json", tmp_path / "model" / "manifest.json")
    with pytest.raises(UserError, match=r"inputs\.model"):
        finish(tmp_path, "activations", {}, ("model",))


def test_an_unfinished_input_is_refused(tmp_path):
    with pytest.raises(UserError, match=rf"activations.*run `python -m launch.harvest --workdir={tmp_path}` first"):
        finish(tmp_path, "sae", {}, ("activations",))
    assert not (tmp_path / "sae").exists()


def _start_and_hang(workdir: Path) -> None:
    with Stage(workdir, "sae", {"k": 1}) as stage:
        (stage.dir / "part").write_text("kept")
        time.sleep(60)


def test_a_killed_stage_keeps_its_folder_for_the_same_config_only(tmp_path):
    process = multiprocessing.get_context("spawn").Process(target=_start_and_hang, args=(tmp_path,))
    process.start()
    while not (tmp_path / "sae" / "part").exists():
        time.sleep(0.05)
    with pytest.raises(UserError, match=r"another command works in .*sae \(process \d+ on .*\): wait"):
        finish(tmp_path, "sae", {"k": 1})
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    with pytest.raises(UserError, match=r"section\.k|k \(now 2"):
        finish(tmp_path, "sae", {"k": 2})
    with Stage(tmp_path, "sae", {"k": 1}) as stage:
        assert not stage.finished and (stage.dir / "part").read_text() == "kept"
        stage.finish({})
    assert files.read_json(tmp_path / "sae" / "manifest.json")["section"] == {"k": 1}


def test_foreign_files_are_not_taken_for_a_result(tmp_path):
    (tmp_path / "sae").mkdir()
    (tmp_path / "sae" / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="no stage wrote"):
        finish(tmp_path, "sae", {})
    assert (tmp_path / "sae" / "thesis.txt").read_text() == "mine"


def test_a_manifest_that_no_stage_wrote(tmp_path):
    finish(tmp_path, "model", {})
    for text, says in (("[]", "holds no JSON object"), ("{}", "is not what a stage wrote")):
        (tmp_path / "model" / "manifest.json").write_text(text)
        for name, inputs in (("model", ()), ("activations", ("model",))):
            with pytest.raises(UserError, match=rf"model/manifest\.json {says}"):
                finish(tmp_path, name, {}, inputs)


def test_a_file_in_the_place_of_the_run_directory(tmp_path):
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(UserError, match="could not write .*Not a directory"):
        finish(tmp_path / "notes", "model", {})


@pytest.mark.parametrize("left", ["unfinished.json", "manifest.json"])
def test_leftovers_of_a_killed_command_are_removed(tmp_path, left):
    finish(tmp_path, "sae", {})
    shutil.copy(tmp_path / "sae" / "manifest.json", tmp_path / "sae" / "unfinished.json")
    if left == "unfinished.json":  # else it was killed just after it had written the manifest
        (tmp_path / "sae" / "manifest.json").unlink()
    for name in ("sae/.manifest.json.1.tmp", "sae/parts/.0.jsonl.2.tmp", ".sae.new.tmp/log.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{")
    finish(tmp_path, "sae", {})
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")} == {"sae", "sae/manifest.json"}


def test_a_stage_that_replaces_leaves_the_old_result_until_the_new_one_is_whole(tmp_path):
    def make(text, fails=False):
        with Stage(tmp_path, "atlas", {"text": text}, replaces=True) as stage:
            if not stage.finished:
                (stage.dir / f"{text}.html").write_text(text)
                if fails:
                    raise KeyboardInterrupt
                stage.finish({})
            return stage.finished

    def there():
        return sorted(path.name for path in (tmp_path / "atlas").iterdir())

    make("old")
    with pytest.raises(KeyboardInterrupt):
        make("new", fails=True)
    assert there() == ["manifest.json", "old.html"]
    make("new")
    assert there() == ["manifest.json", "new.html"]
    assert files.read_json(tmp_path / "atlas" / "manifest.json")["section"] == {"text": "new"}
    assert [path.name for path in tmp_path.iterdir()] == ["atlas"]


def test_the_command_of_a_missing_sweep_names_it(tmp_path):
    with pytest.raises(UserError, match=r"run `python -m launch.steer --workdir=.* --sweep=two` first"):
        finish(tmp_path, "evaluation/two", {}, ("steer/two",))
    with pytest.raises(UserError, match=r"run `python -m launch.train --workdir=\S*` first"):
        finish(tmp_path, "export", {}, ("sae-x2",))


def test_a_result_grows_by_the_fields_that_can(tmp_path):
    grows = {"steer.strengths": growth.union, "steer.features": growth.union, "steer.studies": growth.largest}

    def run(strengths=(1,), features=(3,), studies=2, finishes=True, **other):
        section = {"steer": {"strengths": strengths, "features": features, "studies": studies} | other}
        with Stage(tmp_path, "steer/a", section, grows=grows) as stage:
            found = [*stage.section["steer"].values()][:3]
            if finishes and not stage.finished:
                stage.finish({})
                return found, True
            return found, False

    assert run() == ([[1], [3], 2], True)
    assert run(studies=1) == ([[1], [3], 2], False)
    assert run(strengths=(2, 1), studies=5) == ([[1, 2], [3], 5], True)
    assert run(strengths=(2,), features=(4,), finishes=False) == ([[1, 2], [3, 4], 5], False)
    assert run(strengths=(2,)) == ([[1, 2], [3], 5], False)  # an attempt that is not finished locks nothing
    for refused in ({"features": ()}, {"top_p": 0.5}):
        with pytest.raises(UserError, match=rf"steer\.{next(iter(refused))} "):
            run(**refused)


def test_a_result_stays_finished_where_an_input_that_may_has_grown(tmp_path):
    def run(name, section, inputs=(), **how):
        with Stage(tmp_path, name, section, inputs, **how) as stage:
            if stage.finished:
                return "finished"
            stage.finish(section)
            return "made"

    def interpret(features, **other):
        return run("interp", {"interpret": {"features": features} | other}, grows={"interpret.features": growth.union})

    interpret([1])
    assert run("steer", {}, ("interp",), may_grow=("interp",)) == "made"
    assert run("label", {}, ("interp",)) == "made"
    assert interpret([2]) == "made"
    assert run("steer", {}, ("interp",), may_grow=("interp",)) == "finished"
    with pytest.raises(UserError, match="inputs.interp, which was made anew or extended since"):
        run("label", {}, ("interp",))
    shutil.rmtree(tmp_path / "interp")
    interpret([1], n_score=9)
    with pytest.raises(UserError, match="inputs.interp, which was made anew or extended since"):
        run("steer", {}, ("interp",), may_grow=("interp",))


def test_fields_grow_together():
    there, wanted = {"a": {"n": 3, "of": [1]}, "digest": "x"}, {"a": {"n": 2, "of": []}, "digest": "y"}
    fields = {"a.n": growth.largest, "a.of": growth.union_or_all, "digest": growth.newest, "b.c": growth.union}
    assert growth.grown(there, wanted, fields) == ({"a": {"n": 3, "of": []}, "digest": "y"},) * 2
    assert there["a"]["of"] == [1] and wanted["a"]["n"] == 2


@pytest.mark.parametrize("begun, command", [(False, "{}` first"), (True, "` first")])
def test_the_command_that_resumes_an_input_is_not_given_a_file_that_would_replace_its_flags(
    tmp_path, monkeypatch, begun, command
):
    monkeypatch.setattr(run_config, "_given", ("--config=mine.py",))
    (tmp_path / "activations").mkdir()
    if begun:
        files.write_json(tmp_path / "activations" / "unfinished.json", {})
    expected = f"run `python -m launch.harvest --workdir={tmp_path}" + command.format(" --config=mine.py")
    with pytest.raises(UserError, match=re.escape(expected)), Stage(tmp_path, "sae", {}, ("activations",)):
        pass

"""What a run directory remembers of the configuration."""

import json

import pytest
from ml_collections import ConfigDict

import interp.llm.section  # noqa: F401  (declares what is not remembered)
from maira_jax.errors import UserError
from maira_jax.run.stages.run_config import RunMemory, remembered
from maira_jax.run.stages.stage import Stage


def config(
    n=None, path="a.jsonl", steps=10, strengths=(-1.0, 1.0), profile=0, checkpoint="phantom", dtype="float32"
) -> ConfigDict:
    return ConfigDict(
        {
            "seed": 0,
            "profile": profile,
            "model": {"checkpoint": checkpoint, "dtype": dtype},
            "studies": {"source": "manifest", "path": path, "n": n},
            "train": {"steps": steps},
            "steer": {"strengths": strengths},
            "judge": {"allow_remote": True, "model": "m"},
        }
    )


def begin(workdir, name, section, cfg, fails=None, finishes=True, inputs=()):
    with Stage(workdir, name, section, inputs, config=cfg) as stage:
        if fails is not None:
            raise fails
        if finishes and not stage.finished:
            stage.finish({})


def harvest(workdir, cfg, **how):
    begin(workdir, "activations", {"studies": cfg.studies.to_dict()}, cfg, **how)


def test_the_first_stage_writes_what_can_be_read_back(tmp_path):
    harvest(tmp_path, config())
    found = remembered(tmp_path)
    assert found.studies == config().studies and found.steer.strengths == (-1.0, 1.0)
    assert found.judge.model == "m"


def test_what_gives_leave_or_is_for_one_command_is_not_remembered(tmp_path):
    harvest(tmp_path, config(profile=3))
    values = json.loads((tmp_path / "config.json").read_text())["values"]
    assert "profile" not in values and "allow_remote" not in values["judge"]


def test_a_section_is_settled_by_the_first_stage_that_it_decides(tmp_path):
    harvest(tmp_path, config(steps=10))
    begin(tmp_path, "sae", {"train": {"steps": 20}}, config(steps=20))
    assert remembered(tmp_path).train.steps == 20
    begin(tmp_path, "steer/one", {"steer": {}}, config(steps=30, strengths=(2.0,)))
    begin(tmp_path, "steer/two", {"steer": {}}, config(strengths=(3.0,)))
    assert remembered(tmp_path).train.steps == 20 and remembered(tmp_path).steer.strengths == (2.0,)


def test_an_object_that_was_emptied_is_a_difference(tmp_path):
    harvest(tmp_path, ConfigDict(config().to_dict() | {"sae": {"companions": {"x2": {"expansion": 2}}}}))
    without = ConfigDict(config().to_dict() | {"sae": {"companions": {}}})
    assert RunMemory.read(tmp_path / "config.json").differences(without) == {"sae.companions": {}}


def test_what_is_deleted_settles_nothing(tmp_path):
    harvest(tmp_path, config())
    (tmp_path / "activations" / "manifest.json").unlink()
    (tmp_path / "activations").rmdir()
    harvest(tmp_path, config(path="b.jsonl"))
    assert remembered(tmp_path).studies.path == "b.jsonl"


def test_other_studies_are_refused_by_name(tmp_path):
    harvest(tmp_path, config())
    with pytest.raises(
        UserError, match=r"activations is of other studies: studies\.path is 'b.jsonl' now and 'a.jsonl'"
    ):
        begin(tmp_path, "reports", {"generate": {}}, config(path="b.jsonl"))
    assert not (tmp_path / "reports").exists()
    begin(tmp_path, "reports", {"generate": {}}, config(n=3))  # some of them


def test_another_model_than_the_one_converted_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ours = config(checkpoint="ours")
    begin(tmp_path, "model", {"checkpoint": "ours", "dtype": "float32"}, ours)
    says = r"model\.{} is '{}' now, and .*model was converted with '{}': .*run `python -m launch.convert --workdir="
    for field, now, there in (("checkpoint", "phantom", "ours"), ("dtype", "bfloat16", "float32")):
        with pytest.raises(UserError, match=says.format(field, now, there)):
            begin(tmp_path, "reports", {}, config(**{"checkpoint": "ours", field: now}), inputs=("model",))
    assert not (tmp_path / "reports").exists()
    begin(tmp_path, "export", {}, config())  # does not read it
    begin(tmp_path, "reports", {}, config(checkpoint=str(tmp_path / "ours")), inputs=("model",))
    begin(tmp_path, "localize", {}, ours, inputs=("model",))
    assert remembered(tmp_path).model.checkpoint == "ours"


def test_a_run_without_the_file_refuses_other_studies_too(tmp_path):
    harvest(tmp_path, config())
    (tmp_path / "config.json").unlink()
    with pytest.raises(UserError, match=r"studies\.path"):
        begin(tmp_path, "reports", {"generate": {}}, config(path="b.jsonl"))
    harvest(tmp_path, config())
    assert remembered(tmp_path).studies.path == "a.jsonl"


@pytest.mark.parametrize("error", [UserError("bad"), KeyboardInterrupt(), ValueError()])
def test_a_failed_attempt_without_results_leaves_nothing(tmp_path, error):
    with pytest.raises(type(error)):
        harvest(tmp_path, config(), fails=error)
    assert not list(tmp_path.iterdir())
    begin(tmp_path, "model", {}, config())
    with pytest.raises(type(error)):
        harvest(tmp_path, config(path="b.jsonl"), fails=error)
    assert remembered(tmp_path).studies.path == "a.jsonl" and not (tmp_path / "activations").exists()


def test_a_killed_attempt_without_results_locks_nothing(tmp_path):
    harvest(tmp_path, config(), finishes=False)  # as SIGKILL leaves it
    assert (tmp_path / "activations" / "unfinished.json").exists()
    begin(tmp_path, "activations", {"steps": 1}, config())
    assert json.loads((tmp_path / "activations" / "manifest.json").read_text())["section"] == {"steps": 1}


def test_a_folder_that_remembers_nothing_says_what_to_do(tmp_path):
    with pytest.raises(UserError, match=r"config.json does not exist: give .* --config=FILE once more"):
        remembered(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="holds no configuration of a run: delete it"):
        remembered(tmp_path)


def test_a_memory_that_was_changed_is_refused(tmp_path):
    harvest(tmp_path, config())
    text = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(text.replace('"steps": 10', '"steps": 11'))
    assert text != (tmp_path / "config.json").read_text()
    with pytest.raises(UserError, match="is not what a command wrote: delete it"):
        remembered(tmp_path)

"""`--dry_run` of the commands: devices, the shared folder, and what the stage would do; nothing is left behind."""

import re
from pathlib import Path

import pytest

from configs import phantom
from launch import _dry_run, demo
from maira_jax.errors import UserError
from maira_jax.run import processes
from maira_jax.run.stages.stage import Stage
from steer import run_costs
from tests.helpers import pods


def stage_run(config, workdir):
    """A stage that reads another one."""
    with Stage(workdir, "sae", {"seed": config.seed}, inputs=("activations",)) as stage:
        if not stage.finished:
            (stage.dir / "work").write_text("done")
            stage.finish({"n": 1})
        return stage.manifest["counts"]


def first_run(config, workdir):
    """The stage that it reads."""
    with Stage(workdir, "activations", {"seed": config.seed}) as stage:
        (stage.dir / "tokens").write_text("12 99")
        stage.finish({"n": 1})


def files_of(folder):
    return {path: path.read_bytes() if path.is_file() else None for path in Path(folder).rglob("*")}


def test_a_stage_is_asked_what_it_would_do_and_does_not_do_it(tmp_path):
    config, workdir = phantom.get_config(), tmp_path / "run"
    sentence, would_work = _dry_run.intention(stage_run, config, workdir)
    assert not would_work and not workdir.exists()
    assert sentence == (
        f"would end with: stage sae reads {workdir}/activations, which no finished stage wrote: run "
        f"`python -m launch.harvest --workdir={workdir}` first"
    )
    first_run(config, workdir)
    before = files_of(tmp_path)
    assert _dry_run.intention(stage_run, config, workdir) == (
        f"would begin {workdir}/sae from activations (finished)", True
    )  # fmt: skip
    assert files_of(tmp_path) == before
    with (
        pytest.raises(ZeroDivisionError),
        Stage(workdir, "sae", {"seed": config.seed}, inputs=("activations",)) as stage,
    ):
        (stage.dir / "part").touch()
        raise ZeroDivisionError
    assert _dry_run.intention(stage_run, config, workdir)[0].startswith(f"would resume {workdir}/sae from")
    stage_run(config, workdir)
    before = files_of(tmp_path)
    assert _dry_run.intention(stage_run, config, workdir) == (f"{workdir}/sae is finished already", False)
    (workdir / "activations" / "tokens").write_text("12 98")
    sentence, would_work = _dry_run.intention(stage_run, config, workdir)
    assert sentence.startswith(f"would end with: {workdir}/activations/tokens is not what the stage wrote")
    assert not would_work
    (workdir / "activations" / "tokens").write_text("12 99")
    config.seed = 5
    sentence, would_work = _dry_run.intention(first_run, config, workdir)
    assert "holds a result of another configuration, which differs in section.seed" in sentence and not would_work
    assert files_of(tmp_path) == before


def test_the_folder_is_written_and_left_as_it_was(tmp_path):
    workdir = tmp_path / "a" / "run"
    with _dry_run.leaving_no_trace(workdir):
        assert _dry_run.folder(workdir).startswith(f"{workdir}: every process writes there")
        assert list(workdir.iterdir()) == []
    assert list(tmp_path.iterdir()) == []
    workdir.mkdir(parents=True)
    with _dry_run.leaving_no_trace(workdir):
        _dry_run.folder(workdir)
    assert workdir.is_dir()


def test_a_folder_that_cannot_be_written_or_is_not_shared_is_refused(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="could not write .*file/run .*: choose another --workdir"):
        _dry_run.folder(tmp_path / "file" / "run")
    monkeypatch.setattr(processes, "count", lambda: 2)  # and the other one writes elsewhere
    monkeypatch.setattr(processes, "gather", lambda seen: [True, seen])
    with pytest.raises(UserError, match=f"process 1 does not see in {tmp_path} what the others write"):
        _dry_run.folder(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_every_process_of_a_run_takes_part(tmp_path):
    workdir = tmp_path / "run"
    first, second = pods.ended(
        pods.start(("-m", "launch.train", "--dry_run", f"--workdir={workdir}"), processes=2, devices=2)
    )
    assert (first.code, second.code) == (0, 0), (first, second)
    lines = [line for line in first.out.splitlines() if not line.startswith("[Gloo]")]
    assert lines[0] == "2 x 2 devices (cpu), a sum over all is right"
    assert lines[1].startswith(f"{workdir}: every process writes there")
    assert lines[2].startswith("would end with: stage sae reads")
    assert not workdir.exists()


def test_a_command_of_several_stages_speaks_of_each(tmp_path, capsys):
    config, workdir = phantom.get_config(), tmp_path / "run"
    config.train.steps = 0
    with _dry_run.leaving_no_trace(workdir):
        assert _dry_run.rehearse(dict(demo.STAGES), "", config, workdir) == {}
    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"1 x \d+ devices \(.+\), a sum over all is right", lines[0])
    assert len(lines) == 2 + 12 + 1 + 9 and lines[2] == f"would begin {workdir / 'model'}"
    assert lines[5].startswith("would end with: train.steps is 0")
    assert lines[13].startswith("would end with: stage atlas reads")
    assert [line.split()[0] for line in lines[15:]] == list(run_costs.COUNTED)
    assert list(tmp_path.iterdir()) == []


def test_a_stage_says_what_it_would_take_once_its_inputs_are_finished(tmp_path):
    def steered(config, workdir):
        return {"seconds_at_most": 5} if config.steer.dry_run else stage_run(config, workdir)

    config = phantom.get_config()
    assert _dry_run.rehearse({"steered": steered}, "steer.dry_run", config, tmp_path) == {}
    first_run(config, tmp_path)
    assert _dry_run.rehearse({"steered": steered}, "steer.dry_run", config, tmp_path) == {"seconds_at_most": 5}

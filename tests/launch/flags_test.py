"""The command line as a user meets it: help, flags, errors in one sentence, exit codes."""

import pytest

from configs import phantom
from maira_jax.run.config import shown as describe
from tests.helpers.imported_commands import launch
from tests.helpers.paths import ROOT

# The stages; the benchmarks have options of their own.
COMMANDS = sorted(path.stem for path in (ROOT / "launch").glob("[!_]*.py") if path.stem != "bench")
SOME = ("convert", "harvest", "interpret", "steer", "train")  # tested with every change


@pytest.mark.parametrize(
    "command", [name if name in SOME else pytest.param(name, marks=pytest.mark.drill) for name in COMMANDS]
)
def test_help_explains_every_flag(command):
    result = launch(command, "--help")
    assert result.returncode == 0, result.stderr
    assert f"Usage: python -m launch.{command}" in result.stdout
    lines = result.stdout.splitlines()
    flags = [i for i, line in enumerate(lines) if line.startswith("  --") and not line.startswith("  --config.")]
    assert {"  --workdir", "  --config"} <= {lines[i] for i in flags}
    assert all(lines[i + 1].startswith("      ") for i in flags)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--nosuch=1"], 2, "Unknown command line flag 'nosuch'"),
        (["stray"], 2, "'stray' is not a flag"),
        (["--config.nosuch.x=1"], 2, "no field 'nosuch'"),
        (["--config.model.dtyp=x"], 2, 'Did you mean "dtype"'),
        (["--config.seed=abc"], 2, "--config.seed=abc: 'abc' is not a whole number"),
        (["--config.judge.max_cost=high"], 2, "'high' is not a number"),
        (["--config.studies.split=x"], 1, "studies.split is unknown to studies.source=phantom, which has"),
        (["--config.studies.source=nowhere"], 1, "studies.source is 'nowhere': choose from"),
        (["--config=absent.py"], 2, "No such file or directory: 'absent.py'"),
        (["--config=broken.py"], 2, "ZeroDivisionError: division by zero"),
        (["--config=poor.py"], 2, "no field model"),
        (["--dtype=float64"], 1, "model.dtype is 'float64'"),
        (["--reverse"], 2, "--reverse needs --out"),
        (["--reverse", "--out=back", "--dtype=bfloat16"], 2, "At most one of (reverse, dtype)"),
        (["--reverse", "--out=back"], 1, "holds no converted model"),
        (["--mesh=8"], 1, "mesh is 8,"),
        (["--checkpoint=absent"], 1, "'absent' is not a folder"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_bad_input_is_one_sentence_and_a_failure(tmp_path, arguments, code, words):
    (tmp_path / "broken.py").write_text("def get_config():\n    return 1 / 0\n")
    (tmp_path / "poor.py").write_text(
        "from ml_collections import ConfigDict\n\n\ndef get_config():\n    return ConfigDict({'seed': 0})\n"
    )
    result = launch("convert", "--workdir=run", *arguments, cwd=tmp_path)
    assert result.returncode == code
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("error: ") and words in line
    assert not (tmp_path / "run").exists()


def test_a_stage_without_its_input_says_which_stage_to_run(tmp_path):
    result = launch("train", f"--workdir={tmp_path}")
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1 and "activations" in result.stderr


def test_shortcuts_set_the_configuration_or_say_why_not(tmp_path):
    result = launch("steer", f"--workdir={tmp_path}", "--features=1,b")
    assert result.returncode == 2 and "--features=1,b cannot be read" in result.stderr
    # The configuration's many concepts are not those of chosen features; several that are given are refused.
    result = launch("steer", f"--workdir={tmp_path}", "--features=1,2")
    assert result.returncode == 1 and "model, which no finished stage wrote" in result.stderr
    result = launch("steer", f"--workdir={tmp_path}", "--match=lung", "--config.steer.concepts=edema,mass")
    assert result.returncode == 1 and "steer.concepts names 2 concepts" in result.stderr


def test_another_machine_needs_a_flag_of_its_own(tmp_path):
    arguments = [f"--workdir={tmp_path}", "--config.interpret.judge=llm", "--config.judge.model=m", "--max_cost=2"]
    arguments += ["--config.judge.base_url=https://10.0.0.5:8000/v1", "--config.judge.price_in=1"]
    result = launch("interpret", *arguments)
    assert result.returncode == 1 and result.stderr.count("\n") == 1 and "--allow_remote" in result.stderr
    result = launch("interpret", *arguments, "--allow_remote")
    assert result.returncode == 1 and "no finished stage wrote" in result.stderr


def test_an_address_with_a_password_is_refused_by_every_command_before_anything_is_written(tmp_path):
    address = "--config.judge.base_url=http://user:secret@127.0.0.1/v1"
    result = launch("harvest", f"--workdir={tmp_path / 'run'}", address)
    assert result.returncode == 1 and "judge.base_url holds a user, a password" in result.stderr
    assert "secret" not in result.stdout + result.stderr and not (tmp_path / "run").exists()


def test_help_shows_the_given_configuration(tmp_path):
    shown = launch("harvest", "--config=configs/manifest.py:mine.jsonl", "--help").stdout
    assert "--config.studies.path='mine.jsonl'" in shown and "with the values of configs/manifest.py" in shown


def test_the_demo_refuses_a_wrong_field_of_a_late_stage_before_it_begins(tmp_path):
    result = launch("demo", f"--workdir={tmp_path / 'run'}", "--config.steer.methods=('add','nope')")
    assert result.returncode == 1 and "steer.methods is 'nope'" in result.stderr
    assert not (tmp_path / "run").exists()


def test_a_section_that_does_not_exist_is_refused(tmp_path):
    (tmp_path / "misspelt.py").write_text(
        "from configs import phantom\n\n\ndef get_config():\n    config = phantom.get_config()\n"
        "    config.trian = {'steps': 3}\n    return config\n"
    )
    result = launch("train", f"--workdir={tmp_path / 'run'}", f"--config={tmp_path / 'misspelt.py'}")
    assert result.returncode == 1 and "sets trian, which is not a section" in result.stderr


def test_help_has_every_field_of_the_section_with_its_value():
    lines = launch("train", "--help").stdout.splitlines()
    shown = {line.strip().removeprefix("--config."): i for i, line in enumerate(lines) if "--config." in line}
    for path, value in phantom.get_config().train.items(preserve_field_references=False):
        assert lines[shown[f"train.{path}={describe(value)}"] + 1].startswith("      ")

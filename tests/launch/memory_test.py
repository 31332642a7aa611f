"""A run directory remembers its configuration, as a user meets it on the command line."""

import json
import shlex
import shutil

import pytest

from configs import base, maira2
from launch import _configuration
from maira_jax.errors import UserError
from maira_jax.run.stages.run_config import RunMemory
from tests.helpers.imported_commands import launch

READER = """
from maira_jax.studies.readers.registry import READERS, FilesSection

@READERS.register("of_{0}")
class OurSection(FilesSection):
    pass
"""


def test_a_later_command_needs_no_file_even_when_it_has_gone(tmp_path):
    mine, run = tmp_path / "mine", tmp_path / "run"
    mine.mkdir()
    (mine / "config.py").write_text(
        "from configs import base, phantom\n\n\ndef get_config(path):\n    config = phantom.get_config()\n"
        "    config.studies = base.studies('manifest', path=path)\n    return config\n"
    )
    first = launch("convert", f"--workdir={run}", f"--config={mine / 'config.py'}:nowhere.jsonl")
    assert first.returncode == 0, first.stderr
    assert json.loads((run / "config.json").read_text())["origin"] == f"{mine / 'config.py'}:nowhere.jsonl"
    shutil.rmtree(mine)
    failed = launch("generate", f"--workdir={run}", "--task=phrase", "--config.steer.strengths=-1,2.5")
    announced, error = failed.stderr.splitlines()
    assert announced == f"different from {run}/config.json: generate.task='phrase', steer.strengths=-1,2.5"
    assert failed.returncode == 1 and "nowhere.jsonl is not a file" in error


def test_the_command_to_run_first_has_the_flags_that_say_which_model_and_studies(tmp_path):
    run, given = tmp_path / "run", ("--config=configs/manifest.py:our studies.jsonl", "--config.model.dtype=bfloat16")
    failed = launch("train", f"--workdir={run}", *given, "--config.train.steps=9")
    assert failed.returncode == 1
    assert f"run `python -m launch.harvest --workdir={run} {shlex.join(given)}` first" in failed.stderr


@pytest.fixture
def memory(tmp_path):
    """Of a configuration whose file, which is there, registers the reader of its studies."""
    (tmp_path / "mine.py").write_text(READER.format(tmp_path.name))
    values = base.get_config().to_dict() | {"studies": {"source": f"of_{tmp_path.name}", "path": "x", "n": None}}
    return RunMemory(f"{tmp_path / 'mine.py'}:argument", json.loads(json.dumps(values)))


def test_what_a_file_registers_is_known_from_any_folder(tmp_path, memory):
    _configuration._load_origin(memory.origin, "run")
    config = _configuration._of_memory(memory, "run")
    assert config.studies.path == "x" and config.steer.strengths == base.get_config().steer.strengths
    config.update_from_flattened_dict({"studies.n": 3})  # an open field takes values of its type
    with pytest.raises(TypeError):
        config.update_from_flattened_dict({"studies.n": "three"})


def test_what_a_file_registered_that_has_gone_is_asked_for(tmp_path, memory):
    (tmp_path / "mine.py").unlink()
    _configuration._load_origin(memory.origin, "run")
    with pytest.raises(UserError, match=r"run/config.json: studies.source is 'of_.*give --config=.*mine.py:argument"):
        _configuration._of_memory(memory, "run")


def test_a_file_in_the_run_directory_is_not_run_unasked(tmp_path, memory):
    """A run may come from somebody else, with the file that it names."""
    (tmp_path / "mine.py").write_text("raise SystemExit('it was run')")
    with pytest.raises(UserError, match=r"mine.py, which .*config.json names, lies in the run directory itself"):
        _configuration._load_origin(memory.origin, str(tmp_path))


def test_a_file_that_fails_is_named(tmp_path, memory):
    (tmp_path / "mine.py").write_text("1 / 0")
    with pytest.raises(UserError, match="mine.py, which the configuration of run was made by, fails .division by zero"):
        _configuration._load_origin(memory.origin, "run")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("detection,fuzzing", ("detection", "fuzzing")),
        ("detection", ("detection",)),
        ("12, 99", (12, 99)),
        ("-1,0.5", (-1, 0.5)),
        ("('a','b')", ("a", "b")),
        ("()", ()),
        ("", ()),
        (["1", "2,3"], (1, 2, 3)),
    ],
)
def test_lists_are_members_with_commas_between(text, value):
    assert _configuration._ListParser().parse(text) == value


def test_help_shows_lists_as_flags_take_them(tmp_path):
    shown = launch("interpret", "--config.interpret.scorers=detection,fuzzing", "--help").stdout
    assert "--config.interpret.scorers=detection,fuzzing\n" in shown


def test_a_reader_chosen_by_flag_has_its_own_fields():
    config = base.get_config()
    config.studies = base.studies("manifest", path="here")
    config.lock()
    _configuration._choose_reader(config, ["--config.studies.source=mimic_cxr", "--config.studies.split=test"])
    assert config.studies.source == "mimic_cxr" and config.studies.path == "here" and "split" in config.studies


@pytest.mark.parametrize(
    ("data", "source", "path"), [("a.jsonl", "manifest", "a.jsonl"), ("mimic_cxr:~/b", "mimic_cxr", "~/b")]
)
def test_a_configuration_names_a_reader_or_a_manifest(data, source, path):
    studies = maira2.get_config(f"checkpoint,{data}").studies
    assert (studies.source, studies.path) == (source, path)

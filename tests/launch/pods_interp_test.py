"""Interpretation and labels in several processes: the files are those of one process, whatever is killed on the way."""

import json
import shutil

import pyarrow.parquet as pq
import pytest

from interp import stage as interpret
from interp.atlas import stage as atlas
from interp.medsae import similar_stage
from interp.medsae import stage as label
from maira_jax.run import files
from maira_jax.run.stages.stage import Stage
from sae.formats import export
from steer import evaluate
from steer.selection.choose import SCHEMA
from tests.helpers import pods
from tests.helpers.formats import GROUPS, META, D, finished_sae
from tests.helpers.interp_process import SIZES
from tests.helpers.interp_run import config, make_workdir
from tests.helpers.judge import serve
from tests.helpers.sae import activations, random_sae

SETTINGS = {"n_explain": 40, "n_score": 50, "n_control": 4, "bootstrap": 50}


@pytest.fixture(scope="module", autouse=True)
def small_blocks():
    with pytest.MonkeyPatch.context() as patch:
        for module, name, value in SIZES:
            patch.setattr(module, name, value)
        yield


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return make_workdir(tmp_path_factory.mktemp("inputs"), 120)


@pytest.fixture
def copied(inputs, tmp_path):
    """Gives a run directory of its own on the same inputs."""

    def copy(name, source=inputs):
        return shutil.copytree(source, tmp_path / name)

    return copy


@pytest.fixture(scope="module")
def interpreted(inputs, tmp_path_factory):
    """What one process makes of the inputs without a language model."""
    workdir = shutil.copytree(inputs, tmp_path_factory.mktemp("one") / "run")
    interpret.run(configured(), workdir)
    return workdir


def configured(**judge):
    cfg = config(**SETTINGS, **({"judge": "llm"} if judge else {}))
    cfg.studies.n, cfg.steer.name = 120, "test"
    cfg.judge.update(judge)
    cfg.label.sections, cfg.similar.study_id = ("findings",), "phantom-0-000003"
    return cfg


def program(command, workdir, cfg):
    """What starts a command with a configuration."""
    given = {f"interpret.{name}": cfg.interpret[name] for name in (*SETTINGS, "judge")}
    given |= {"interpret.concept_sections": ",".join(cfg.interpret.concept_sections)}
    given |= {f"judge.{name}": cfg.judge[name] for name in ("base_url", "model")}
    given |= {f"label.{name}": cfg.label[name] for name in ("bootstrap", "probe_seeds")}
    given |= {"similar.study_id": cfg.similar.study_id, "studies.n": cfg.studies.n, "studies.seed": cfg.studies.seed}
    flags = [f"--config.{name}={value}" for name, value in given.items()]
    flags += [f"--config.label.sections={cfg.label.sections!r}", "--config.steer.name=test", f"--workdir={workdir}"]
    return ("-m", "tests.helpers.interp_process", command, *flags)


def run(command, workdir, cfg, processes, devices=2):
    ends = pods.ended(pods.start(program(command, workdir, cfg), processes=processes, devices=devices))
    assert [end.code for end in ends] == [0] * processes, ends
    assert not any(end.out or end.err for end in ends[1:]), ends


def results(workdir, stage):
    """The files of a stage but its manifest."""
    paths = [path for path in (workdir / stage).rglob("*") if path.is_file() and path.name != "manifest.json"]
    return {str(path.relative_to(workdir / stage)): path.read_bytes() for path in paths}


def lose(killed, workdir, processes, devices, monkeypatch):
    """Interprets in several processes, of which one is lost during the pass."""
    monkeypatch.setenv("KILLED", str(killed))
    started = pods.start(program("interpret", workdir, configured()), processes=processes, devices=devices)
    codes = {end.code for i, end in enumerate(pods.ended(started)) if i != killed}
    assert codes == {143} and started[killed].returncode == -9
    monkeypatch.delenv("KILLED")
    assert list((workdir / "interp" / "phases" / "parts").glob("*.npz"))


@pytest.mark.drill
def test_interpretation_that_loses_a_process_is_finished_by_others(copied, interpreted, monkeypatch):
    workdir = copied("run")
    lose(1, workdir, 3, 1, monkeypatch)
    run("interpret", workdir, configured(), 2)
    assert results(workdir, "interp") == results(interpreted, "interp")
    assert files.read_json(workdir / "interp" / "manifest.json")["counts"]["scored"] > 0


def test_a_language_model_is_asked_each_question_once(copied):
    requests, found = [], []
    for processes in (1, 2):
        workdir = copied(str(processes))
        with serve() as server:
            cfg = configured(base_url=server.url, model="rule")
            interpret.run(cfg, workdir) if processes == 1 else run("interpret", workdir, cfg, processes)
            record = server.record()
        assert record["answered_twice"] == 0
        requests.append(record["requests"])
        url = server.url.encode()
        found.append({name: content.replace(url, b"URL") for name, content in results(workdir, "interp").items()})
    assert requests[0] == requests[1] > 0 and found[0] == found[1]


def test_labels(copied):
    one, several = copied("one"), copied("several")
    label.run(configured(), one)
    run("label", several, configured(), 2)
    assert results(several, "label") == results(one, "label")


@pytest.mark.drill
def test_similar_studies(copied, capsys):
    one, several = copied("one"), copied("several")
    similar_stage.run(configured(), one)
    ends = pods.ended(pods.start(program("similar", several, configured()), processes=2, devices=2))
    assert [end.code for end in ends] == [0, 0] and ends[0].out.startswith(capsys.readouterr().out) and not ends[1].out
    assert results(several, "similar") == results(one, "similar")


def test_a_page_is_made_by_the_first_process(copied, interpreted):
    one, several = (copied(name, interpreted) for name in ("one", "several"))
    atlas.run(configured(), one)
    run("atlas", several, configured(), 2, devices=1)
    assert results(several, "atlas") == results(one, "atlas")


@pytest.mark.drill
@pytest.mark.parametrize("command, result", [("export", "export"), ("evaluate", "evaluation/test")])
def test_stages_of_the_first_process(tmp_path, command, result):
    """Of a random autoencoder, and of a sweep whose reports are made up."""
    one = tmp_path / "one"
    finished_sae(one, "sae", random_sae(activations(200, D), GROUPS, 4, 0.75, meta=META))
    with Stage(one, "steer/test", {}) as stage:
        (stage.dir / "generations.jsonl").write_text("".join(json.dumps(line) + "\n" for line in made_up()))
        pq.write_table(SCHEMA.empty_table(), stage.dir / "selection.parquet")
        stage.finish({})
    several = shutil.copytree(one, tmp_path / "several")
    {"export": export.run, "evaluate": evaluate.run}[command](configured(), one)
    run(command, several, configured(), 2)
    assert results(several, result) == results(one, result) != {}


def made_up():
    """The generations of a sweep of one direction, which adds an effusion in every study."""
    clear, effusion = "No pleural effusion.", "Small left pleural effusion."
    for study in range(12):
        for method, strength, steered in (("none", 0.0, clear), ("add", 2.0, effusion), ("random", 2.0, clear)):
            concept, feature = ("", None) if method == "none" else ("left pleural effusion", 3)
            yield {
                "study_id": f"s{study:02d}", "direction": method, "strength": strength, "original": clear,
                "steered": steered, "finished": True, "finite": True, "mean_nll": 0.5,
                "settings": {"method": method, "concept": concept, "feature": feature},
            }  # fmt: skip


@pytest.mark.drill
@pytest.mark.parametrize("processes, devices", [(2, 4), (4, 2)])
def test_more_processes_with_more_devices(copied, interpreted, monkeypatch, processes, devices):
    """The first process is lost, and later the last; then all end."""
    workdir = copied("run")
    lose(0, workdir, processes, devices, monkeypatch)
    lose(processes, workdir, processes + 1, 1, monkeypatch)
    run("interpret", workdir, configured(), processes, devices)
    assert results(workdir, "interp") == results(interpreted, "interp")
    one = copied("one")
    label.run(configured(), one)
    run("label", workdir, configured(), processes, devices)
    assert results(workdir, "label") == results(one, "label")

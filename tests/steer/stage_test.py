"""The steering sweep and its evaluation on a small random model."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pyarrow.parquet as pq
import pytest
from ml_collections import ConfigDict

from maira_jax.checkpoint import store
from maira_jax.errors import UserError
from maira_jax.generation.decode import Sampling, generate, row_keys
from maira_jax.run import files
from maira_jax.studies.readers import load_studies
from steer import evaluate, stage
from steer.methods.learned import reft_r1, smallest_set
from steer.methods.learned.kept import KeptEdits
from steer.program import decode as programs
from steer.program.prompts import Prompts
from steer.program.sweep_writer import SweepWriter
from steer.selection.target import Target
from tests.helpers.commands import launch
from tests.helpers.phantom_model import D_MODEL
from tests.helpers.steer_run import LEARNED, N_STUDIES, TRIED, lines_of, make_config
from tests.helpers.traces import names_in


def test_one_line_per_study_direction_and_strength(swept: tuple[Path, dict]) -> None:
    workdir, counts = swept
    lines = lines_of(workdir)
    # Feature 5 is best for two concepts and takes the better one; oedema is in no training study,
    # so what compares studies with and without it does not exist.
    numbered = ("add", "add_several", "clamp", "ablate", "project", "random")
    keys = [f"{name}-5-pneumothorax" for name in numbered] + [f"{name}-9-oedema" for name in numbered]
    described = files.read_json(workdir / "steer" / "test" / stage.DIRECTIONS)
    assert {d["key"] for d in described} == {*keys, "prompt-pneumothorax", "prompt-oedema"}
    several = next(d for d in described if d["key"] == "add_several-5-pneumothorax")
    assert several["target"]["others"] == [[7, 6.0], [8, 6.0]]
    assert np.load(workdir / "steer" / "test" / "directions.npy").shape == (14, D_MODEL)
    # A concept has 4 methods with two strengths, two with none of their own, and two sentences.
    assert counts["generations"] == len(lines) == 5 * (1 + 2 * (4 * 2 + 2 + 2))
    triples = [(line["study_id"], line["direction"], line["strength"]) for line in lines]
    assert len(set(triples)) == len(triples)
    by_study = {line["study_id"]: line["steered"] for line in lines if line["direction"] == "none"}
    assert all(line["original"] == by_study[line["study_id"]] for line in lines)
    assert len(by_study) == 5
    assert all(line["finite"] and 0 < line["mean_nll"] < 20 for line in lines)


def plain(workdir: Path, ids: list[str], sampling: Sampling | None = None) -> list[str]:
    """What plain generation, another program without edits, writes for some studies."""
    params, cfg = store.load(workdir / "model")
    by_id = {study.study_id: study for study in load_studies(make_config().studies)}
    prompts = Prompts.of([by_id[study] for study in ids], workdir / "model")
    tokens, mask, _, pixels = prompts.batch(range(len(ids)))
    eos = prompts.tokenizer.eos_id
    ids, lengths = generate(params, cfg, tokens, mask, pixels, max_new_tokens=12, eos_id=eos, sampling=sampling)
    return [prompts.tokenizer.decode(row[:n]) for row, n in zip(np.asarray(ids), np.asarray(lengths), strict=True)]


def test_a_batch_is_traced(swept: tuple[Path, dict]) -> None:
    names = names_in(swept[0] / "profile")  # of the programs, those that worker threads ran meanwhile, if any
    assert names["steer"] == names["feed"] == 1


def test_strength_zero_is_the_unsteered_report(swept: tuple[Path, dict]) -> None:
    """Byte for byte."""
    workdir, _ = swept
    originals = {line["study_id"]: line["original"] for line in lines_of(workdir)}
    assert plain(workdir, list(originals)) == list(originals.values())
    assert all(originals.values())


def test_draws_depend_on_the_study_alone(inputs: Path, workdir: Path) -> None:
    config = make_config()
    config.steer.update({"temperature": 0.8, "top_p": 0.9, "methods": ("random",), "strengths": (1e-20, 9.0)})
    stage.run(config, workdir)
    lines = lines_of(workdir)
    assert all(line["steered"] == line["original"] for line in lines if line["strength"] == 1e-20)
    originals = {line["study_id"]: line["original"] for line in lines}
    sampling = Sampling(row_keys(list(originals), 0), jnp.float32(0.8), jnp.float32(0.9))
    assert plain(workdir, list(originals), sampling) == list(originals.values())
    assert plain(workdir, list(originals)) != list(originals.values())


def test_every_method_changes_reports_and_nothing_recompiles(swept: tuple[Path, dict]) -> None:
    workdir, _ = swept
    lines = lines_of(workdir)
    for method in {line["settings"]["method"] for line in lines} - {"none"}:
        own = [line for line in lines if line["settings"]["method"] == method]
        assert any(line["steered"] != line["original"] for line in own), method
    used = (programs.prefill, programs.begin, programs.advance)
    before = [program._cache_size() for program in used]
    again = make_config()
    again.steer.update({"name": "again", "strengths": (1.0, 16.0)})
    stage.run(again, workdir)
    assert [program._cache_size() for program in used] == before
    assert (workdir / "steer" / "again" / stage.GENERATIONS).is_file(), "two sweeps in one run directory"


@pytest.mark.parametrize(
    "computing", [{"workers": 1}, {"batch_studies": 3, "workers": 1}, {"batch_rows": 4}, {"batch_rows": 64}]
)
def test_how_many_are_written_together_decides_nothing(
    swept: tuple[Path, dict], workdir: Path, computing: dict[str, int]
) -> None:
    """Texts are the same; the likelihoods differ by rounding, since the matrix products have other shapes."""
    config = make_config()
    config.steer.update(computing | {"studies": 4})
    stage.run(config, workdir)
    whole = lines_of(swept[0])
    for found, line in zip(lines_of(workdir), whole[: len(whole) * 4 // 5], strict=True):
        assert found.pop("mean_nll") == pytest.approx(line.pop("mean_nll"), abs=2e-5)
        assert found == line


def test_every_method_that_adds_moves_equally_far(swept: tuple[Path, dict]) -> None:
    workdir, _ = swept
    vectors = np.load(workdir / "steer" / "test" / "directions.npy")
    described = files.read_json(workdir / "steer" / "test" / stage.DIRECTIONS)
    adds = np.array([d["method"] in ("add", "add_several", "random") for d in described])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), adds, rtol=1e-6)
    assert {d["unit_size"] for d in described if d["method"] != "prompt"} == {6.0}


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it."""


@pytest.mark.parametrize("batches", [0, 1, 2])
def test_a_killed_sweep_ends_with_the_same_file(
    swept: tuple[Path, dict], workdir: Path, monkeypatch: pytest.MonkeyPatch, batches: int
) -> None:
    """Killed after some batches."""
    calls = []
    write = SweepWriter.write

    def failing(self: SweepWriter, studies: range, *args: object) -> list:
        if len(calls) == batches:
            raise Killed
        calls.append(len(studies))
        return write(self, studies, *args)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(SweepWriter, "write", failing)
        stage.run(make_config(), workdir)
    redone = []
    monkeypatch.setattr(SweepWriter, "write", lambda self, *args: redone.append(1) or write(self, *args))
    stage.run(make_config(), workdir)
    path = workdir / "steer" / "test" / stage.GENERATIONS
    assert path.read_bytes() == (swept[0] / "steer" / "test" / stage.GENERATIONS).read_bytes()
    assert len(redone) == 3 - batches


def test_a_sweep_continues_from_what_is_there(
    swept: tuple[Path, dict], workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(**fields: object) -> list[tuple[int, int]]:
        config, written = make_config(), []
        config.steer.update({"methods": ("add", "clamp"), "features": (5,)} | fields)
        write = SweepWriter.write

        def counting(self: SweepWriter, studies: list[int], *args: object) -> list:
            written.append((len(studies), len(self.rows)))
            return write(self, studies, *args)

        with monkeypatch.context() as patch:
            patch.setattr(SweepWriter, "write", counting)
            stage.run(config, workdir)
        return sorted(written)

    assert run(strengths=(4.0,), studies=1) == [(1, 3)]
    assert run(studies=3, strengths=(-4.0,), features=(9,)) == [(1, 7), (2, 9)]
    assert run(strengths=(4.0,), studies=1) == []  # it is all there
    with pytest.raises(UserError, match=r"steer.top_p \(now 0.5, there 1.0\)"):
        run(top_p=0.5)
    keys = ("study_id", "direction", "strength")
    # Features that are named are steered for no concept, which the keys of their directions do not have then.
    numbered = [line | {"direction": "-".join(line["direction"].split("-")[:2])} for line in lines_of(swept[0])]
    whole = {tuple(line[key] for key in keys): line for line in numbered}
    lines = lines_of(workdir)
    found = [tuple(line[key] for key in keys) for line in lines]
    steered = {"none", "add-5", "clamp-5", "add-9", "clamp-9"}
    assert sorted(found) == sorted(key for key in whole if key[1] in steered and key[0] <= lines[-1]["study_id"])
    assert [study for study, *_ in found] == sorted(study for study, *_ in found)
    for line in lines:
        other = whole[tuple(line[key] for key in keys)]
        assert line.pop("mean_nll") == pytest.approx(other["mean_nll"], abs=2e-5)
        assert line.items() <= other.items()
    described = files.read_json(workdir / "steer" / "test" / stage.DIRECTIONS)
    assert {each["key"] for each in described} == {"add-5", "clamp-5", "add-9", "clamp-9"}


def test_a_dry_run_estimates_and_writes_nothing(swept: tuple[Path, dict]) -> None:
    workdir, counts = swept
    config = make_config()
    config.steer.update({"name": "dry", "dry_run": True})
    found = stage.run(config, workdir)
    assert found["generations"] == counts["generations"]
    assert found["reports_together"] == 12
    assert found["memory_gib"] > 0 and found["tokens_per_second"] > 0
    assert not (workdir / "steer" / "dry").exists()


TOY = """
import numpy as np
from ml_collections import ConfigDict

from steer.methods import METHODS, SteeringMethod
from steer.methods.intervention import Intervention
from sae.activations.token_rows import TokenRows


class StudyCount:
    def __init__(self, n):
        self.n = n

    @classmethod
    def measure(cls, store, measured, sae):
        return cls(len(store.studies))


@METHODS.register("toy")
class ToyMethod(SteeringMethod):
    statistics = (StudyCount,)

    def intervention(self, target, inputs):
        vector = np.zeros(inputs.sae.d_model)
        vector[inputs.statistic(StudyCount).n] = -3.0
        return Intervention.adding(vector, inputs.unit_size(target.max_activation))


def get_config():
    return ConfigDict(CONFIG)
"""


def test_a_method_of_a_configuration_file_runs_through_the_commands(workdir: Path, tmp_path: Path) -> None:
    config = make_config()
    config.steer.update({"methods": ("toy",), "studies": 2, "top": 1})
    config.judge = ConfigDict({"allow_remote": False, "max_cost": 0.0})
    path = tmp_path / "toy_config.py"
    path.write_text(TOY.replace("CONFIG)", f"{config.to_dict()!r})"))
    for command in ("steer", "evaluate"):
        result = launch(command, f"--config={path}", f"--workdir={workdir}")
        assert result.returncode == 0, result.stderr
    lines = lines_of(workdir)
    assert {line["settings"]["method"] for line in lines} == {"none", "toy"}
    assert any(line["steered"] != line["original"] for line in lines)
    (vector,) = np.load(workdir / "steer" / "test" / "directions.npy")
    assert vector[N_STUDIES] == -1 and np.count_nonzero(vector) == 1
    table = pq.read_table(workdir / "evaluation" / "test" / evaluate.RESULTS)
    assert set(table["method"].to_pylist()) == {"none", "toy"}


def test_evaluation_of_the_sweep(swept: tuple[Path, dict]) -> None:
    workdir, counts = swept
    result = evaluate.run(make_config(), workdir)
    table = pq.read_table(workdir / "evaluation" / "test" / evaluate.RESULTS)
    assert table.num_rows == counts["generations"] == result["generations"]
    assert table["line"].to_pylist() == list(range(table.num_rows))
    zero = [row for row in table.to_pylist() if row["method"] == "none"]
    assert all(row["identical"] and row["no_change"] and not row["eligible"] for row in zero)
    summary = files.read_json(workdir / "evaluation" / "test" / evaluate.SUMMARY)
    assert set(summary["headline"]) <= set(TRIED)
    assert all(row["mean_nll"] > 0 for row in table.to_pylist())


def test_learned_methods_steer_and_the_sets_of_features_are_written(
    workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reft_r1, "_STEPS", 2)
    monkeypatch.setattr(smallest_set, "_WEIGHTS", 2)
    config = make_config()
    config.steer.update(
        {"methods": (*LEARNED, "clamp", "project"), "features": (9,), "concepts": ("oedema",), "studies": 1}
    )
    stage.run(config, workdir)
    lines = [line for line in lines_of(workdir) if line["settings"]["method"] in LEARNED]
    assert {line["strength"] for line in lines} == {-4.0, -1.0, 1.0, 4.0}
    rows = pq.read_table(workdir / "steer" / "test" / stage.SETS).to_pylist()
    assert {row["method"] for row in rows} == {"smallest_set", "clamp"}  # a projection is no feature
    assert [(row["intended"], row["value"]) for row in rows if row["method"] == "clamp"] == [
        ("added", 6.0),
        ("removed", -6.0),
    ]
    learned = [row for row in rows if row["method"] == "smallest_set"]
    assert all(row["concept"] == "oedema" and row["value"] >= 0 for row in learned)
    for intended in ("added", "removed"):
        own = [row for row in learned if row["intended"] == intended]
        assert [row["rank"] for row in own] == list(range(1, len(own) + 1))


def test_an_edit_is_learned_once_and_never_in_a_dry_run(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    learned: list[str] = []

    def nothing(self: object, target: Target, *_: object) -> dict[str, object]:
        learned.append(target.concept)
        return {"direction": [1.0] * D_MODEL, "largest": 1.0}

    monkeypatch.setattr(reft_r1.ReftR1, "_learn", nothing)
    config = make_config()
    config.steer.update({"methods": ("reft_r1",), "features": (), "studies": 1, "dry_run": True})
    config.steer.concepts = ("oedema", "pneumothorax")
    wanted = stage.run(config, workdir)["generations"]
    assert learned == [] and not (workdir / "steer").exists()
    config.steer.update({"concepts": ("oedema",), "dry_run": False})
    stage.run(config, workdir)
    config.steer.concepts = ("pneumothorax",)
    assert stage.run(config, workdir)["generations"] == wanted
    assert learned == ["oedema", "pneumothorax"]
    path = workdir / "steer" / "test" / "learned" / "reft_r1-oedema.json"
    assert KeptEdits(path.parents[1]).get("reft_r1", "oedema", lambda: 0, 0)["largest"] == 1.0
    for text in (path.with_name("reft_r1-pneumothorax.json").read_text(), path.read_text().replace("1.0", "1.5", 1)):
        path.write_text(text)
        with pytest.raises(UserError, match="damaged or of another concept: delete it and steer again"):
            KeptEdits(path.parents[1]).get("reft_r1", "oedema", lambda: 0, 0)

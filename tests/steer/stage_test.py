"""The steering sweep and its evaluation on a small random model."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ml_collections import ConfigDict
from PIL import Image

from maira_jax.checkpoint import store
from maira_jax.errors import UserError
from maira_jax.generation.decode import Sampling, generate, row_keys
from maira_jax.inputs import image
from maira_jax.inputs.batches import read_images
from maira_jax.inputs.tokens import Kind
from maira_jax.run import files
from maira_jax.run.stages.stage import Stage
from maira_jax.studies.readers import load_studies
from sae import autoencoder
from sae.activations.store import StoreLayout, StoreWriter
from sae.activations.token_rows import TokenRows
from sae.autoencoder import Sae
from sae.formats import safetensors as plain_file
from sae.saved import load_sae, save_sae
from steer import evaluate, stage
from steer.methods import METHODS, MethodInputs
from steer.program import decode as programs
from steer.program.prompts import Prompts
from steer.program.sweep_writer import SweepWriter
from steer.selection import SELECTIONS
from steer.selection.catalogue import FeatureCatalogue
from tests.helpers.commands import launch
from tests.helpers.phantom_model import D_MODEL, write_model
from tests.helpers.traces import names_in

BUILT_IN = METHODS.names()
N_STUDIES, N_FEATURES, SITE = 12, 64, "language.1.resid_post"


def make_config() -> ConfigDict:
    steer = {
        "name": "test",
        "features": (),
        "match": "",
        "concepts": (),
        "select": ("concept",),
        "candidates": 1,
        "pool": 3,
        "select_studies": 2,
        "top": 2,
        "combinations": (),
        "methods": BUILT_IN,
        "strengths": (-4.0, 4.0),
        "unit": "max_activation",
        "positions": ("generated",),
        "sae": "",
        "manifest": "",
        "studies": 5,
        "batch_studies": 2,
        "batch_rows": 6,
        "workers": 2,
        "max_new_tokens": 12,
        "temperature": 0.0,
        "top_p": 1.0,
        "dry_run": False,
    }
    studies = {"source": "phantom", "n": N_STUDIES, "seed": 2, "size": 28}
    evaluate = {"bootstrap": 50, "judge": "none", "judge_studies": 1}
    return ConfigDict({"seed": 0, "studies": studies, "steer": steer, "evaluate": evaluate})


def write_activations(directory: Path, studies: list, rng: np.random.Generator) -> None:
    per_study = 6
    n = per_study * len(studies)
    tokens = TokenRows(
        study=np.repeat(np.arange(len(studies)), per_study).astype(np.int32),
        position=np.tile(np.arange(per_study), len(studies)).astype(np.int32),
        token_id=np.full(n, 7, np.int32),
        kind=np.tile([Kind.INDICATION, *[Kind.FINDINGS] * 5], len(studies)).astype(np.int8),
    )
    table = pa.table(
        {
            "study_id": [s.study_id for s in studies],
            "patient_id": [s.patient_id for s in studies],
            "split": ["train"] * 6 + ["held_out"] * 6,
            "labels": [json.dumps({"cardiomegaly": i % 2 == 0, "oedema": False}) for i in range(len(studies))],
            "start": np.arange(len(studies)) * per_study,
            "stop": (np.arange(len(studies)) + 1) * per_study,
        }
    )
    layout = StoreLayout(n, D_MODEL, "float32", 128, 64)
    writer = StoreWriter(directory, layout, tokens, table, {"site": SITE})
    writer.write(0, rng.normal(size=(n, D_MODEL)).astype(np.float32))


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory with everything that steering reads."""
    workdir = tmp_path_factory.mktemp("run")
    config, rng = make_config(), np.random.default_rng(0)
    studies = list(load_studies(config.studies))
    for name in ("model", "activations", "sae", "interp"):
        with Stage(workdir, name, {"test": name}) as written:
            if name == "model":
                write_model(written.dir, studies)
            elif name == "activations":
                write_activations(written.dir, studies, rng)
            elif name == "sae":
                params = autoencoder.init(jax.random.key(1), D_MODEL, N_FEATURES, jnp.zeros(D_MODEL))
                save_sae(written.dir, Sae(params, 0.1, 4, (32, 32), {"site": SITE}))
            else:
                features = {
                    "feature": np.arange(N_FEATURES, dtype=np.int32),
                    "explanation": [f"mentions word {i}" for i in range(N_FEATURES - 1)] + ["oedema of the lung"],
                    "detection": np.full(N_FEATURES, 0.6),
                    "max_activation": np.full(N_FEATURES, 6.0),
                    "concept": pa.nulls(N_FEATURES, pa.string()),
                    "concept_f1": pa.nulls(N_FEATURES, pa.float64()),
                }
                pq.write_table(pa.table(features), written.dir / "features.parquet")
                concepts = {
                    "concept": ["cardiomegaly", "oedema", "pneumothorax"],
                    "feature": np.array([5, 9, 5], np.int32),
                    "f1": [0.9, 0.8, 0.95],
                    "runners_up": [[1], [2, 3], [7, 8]],
                    "runners_up_f1": [[0.2], [0.79, 0.1], [0.9, 0.86]],
                }
                pq.write_table(pa.table(concepts), written.dir / "concepts.parquet")
            written.finish({})
    return workdir


@pytest.fixture()
def workdir(inputs: Path, tmp_path: Path) -> Path:
    """A fresh run directory on the same inputs."""
    for name in ("model", "activations", "sae", "interp"):
        (tmp_path / name).symlink_to(inputs / name)
    return tmp_path


@pytest.fixture(scope="module")
def swept(inputs: Path) -> tuple[Path, dict]:
    config = make_config()
    config.profile = 1
    counts = stage.run(config, inputs)
    return inputs, counts


def lines_of(workdir: Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / "steer" / "test" / stage.GENERATIONS).read_text().splitlines()]


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


def test_every_rule_chooses_and_is_compared_with_what_steering_did(workdir: Path) -> None:
    config = make_config()
    rules = [name for name in SELECTIONS.names() if not name.startswith("fixed")]  # which other tests register
    config.steer.update({"select": rules, "methods": ("add",), "strengths": (4.0,), "studies": 2})
    stage.run(config, workdir)
    rows = pq.read_table(workdir / "steer" / "test" / stage.SELECTION).to_pylist()
    targets = [entry["target"] for entry in files.read_json(workdir / "steer" / "test" / stage.DIRECTIONS)]
    for concept in ("pneumothorax", "oedema"):
        own = [row for row in rows if row["concept"] == concept]
        chosen = {row["feature"]: {} for row in own if row["chosen"]}
        for row in own:
            if row["chosen"]:
                assert row["rank"] == 1 and row["score"] == max(r["score"] for r in own if r["rule"] == row["rule"])
                chosen[row["feature"]][row["rule"]] = row["score"]
        assert [t["feature"] for t in targets if t["concept"] == concept] == list(chosen)
        assert [dict(t["chosen_by"]) for t in targets if t["concept"] == concept] == list(chosen.values())
    of_rule = {rule: {(r["concept"], r["feature"]) for r in rows if r["rule"] == rule} for rule in rules}
    candidates = of_rule["concept"] | of_rule["explanation"] | of_rule["gradient"]
    assert of_rule["gradient"] == of_rule["output_score"] == of_rule["confidence"] == candidates
    assert of_rule["explanation"] == {("oedema", N_FEATURES - 1)}
    evaluate.run(config, workdir)
    found = files.read_json(workdir / "evaluation" / "test" / "summary.json")["selection"]
    assert set(found) == {row["rule"] for row in rows}
    assert {"methods", "spearman", "low", "high", "n"} == set(found["gradient"])


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


def test_combinations_of_features(inputs: Path, workdir: Path) -> None:
    config = make_config()
    config.steer.update({"combinations": ("5-9", "9+3"), "studies": 1})
    stage.run(config, workdir)
    lines = [line for line in lines_of(workdir) if line["strength"]]
    assert {line["direction"] for line in lines} == {"5-9", "9+3"}
    pair = next(line["settings"] for line in lines if line["direction"] == "5-9")
    assert (pair["concept"], pair["other_concepts"], pair["method"]) == ("pneumothorax", ["oedema"], "combination")
    w_dec = np.asarray(load_sae(inputs / "sae").params["W_dec"])
    expected = 6.0 * (w_dec[5] - w_dec[9])
    np.testing.assert_allclose(
        np.load(workdir / "steer" / "test" / "directions.npy")[0] * pair["unit_size"], expected, atol=1e-5
    )


def test_an_imported_autoencoder(inputs: Path, workdir: Path) -> None:
    from sae.activations.store import ActivationStore

    own = load_sae(inputs / "sae")
    plain_file.save(workdir, own)
    path = workdir / "sae.safetensors"
    store_ = ActivationStore.open(inputs / "activations")
    x = jnp.asarray(store_.read(0, 36).astype(np.float32))
    limits = np.linspace(0.1, 2.0, own.n_features, dtype=np.float32)
    # As BatchTopK's, JumpReLU's and TopK's files are.
    for sae in (own, dataclasses.replace(own, threshold=limits), dataclasses.replace(own, k=2, per_token=True)):
        f = np.asarray(sae.encode(x))
        measured = FeatureCatalogue.measured(sae, store_, (4, 11), "there")
        for number in (4, 11):
            np.testing.assert_allclose(measured.target(number).max_activation, f[:, number].max(), rtol=1e-5)
    config = make_config()
    config.steer.update({"sae": str(path), "features": (4, 11), "methods": ("add",), "studies": 1})
    for name in ("sae", "interp"):
        (workdir / name).unlink()
    stage.run(config, workdir)
    assert {line["direction"] for line in lines_of(workdir)} == {"none", "add-4", "add-11"}


def test_image_files_of_studies_are_decoded_by_other_processes(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    studies = list(load_studies(make_config().studies))[:3]
    arrays = Prompts.of(studies, inputs / "model")
    for number, study in enumerate(studies):
        Image.fromarray(np.asarray(study.frontal)).save(tmp_path / f"{number}.png")
        studies[number] = dataclasses.replace(study, frontal=tmp_path / f"{number}.png")
    monkeypatch.setattr(image, "read_grey", None)  # in this process alone
    in_files = Prompts.of(studies, inputs / "model")
    for number, request in enumerate(arrays.requests):
        expected = read_images(request.images, arrays.n_images, arrays.image_cfg)
        np.testing.assert_array_equal(arrays.pixels(number), expected)
        np.testing.assert_array_equal(in_files.pixels(number), expected)
        assert in_files.digest(number) == arrays.digest(number)


def test_features_by_explanation(inputs: Path, workdir: Path, capsys: pytest.CaptureFixture) -> None:
    config = make_config()
    config.steer.match = "Oedema of"
    config.steer.studies, config.steer.methods = 1, ("add",)
    stage.run(config, workdir)
    steered = [line for line in lines_of(workdir) if line["strength"]]
    assert {line["settings"]["feature"] for line in steered} == {N_FEATURES - 1}
    assert {line["settings"]["concept"] for line in steered} == {"oedema"}
    said = capsys.readouterr().err
    assert f"steer: 1 of 1 features that match (steer.top)\nsteer: feature {N_FEATURES - 1} oedema: oedema of" in said
    with Stage(workdir, "interpretations/released", {}) as written:
        rows = {"feature": [7, 9], "name": ["oedema of lungs", None], "explanation": ["fluid", "No oedema of any kind"]}
        pq.write_table(pa.table(rows), written.dir / "features.parquet")
        written.finish({})
    config.steer.update({"set": "released", "name": "other"})
    stage.run(config, workdir)
    (target,) = (entry["target"] for entry in json.loads((workdir / "steer" / "other" / "directions.json").read_text()))
    assert (target["feature"], target["explanation"]) == (7, "oedema of lungs / fluid")
    config.steer.update({"set": "absent", "name": "third"})
    with pytest.raises(UserError, match="interpretations/absent, which no finished stage wrote"):
        stage.run(config, workdir)


def test_a_set_that_is_added_to_leaves_sweeps_as_they_are_but_for_what_matches(
    workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interpret(**names: str) -> None:
        shutil.rmtree(workdir / "interpretations", ignore_errors=True)
        with Stage(workdir, "interpretations/released", {}) as written:
            features = [int(name.removeprefix("f")) for name in names]
            rows = {"feature": features, "name": list(names.values()), "explanation": [""] * len(names)}
            pq.write_table(pa.table(rows), written.dir / "features.parquet")
            written.finish({"features": len(names)})

    config = make_config()
    config.steer.update({"studies": 1, "methods": ("add",), "set": "released"})
    ways: dict[str, dict] = {"matching": {"match": "wires"}, "numbered": {"match": "", "features": (7,)}}
    interpret(f7="wires of a pacemaker")
    for name, way in ways.items():
        config.steer.update({"name": name, "features": ()} | way)
        stage.run(config, workdir)
    interpret(f7="wires of a pacemaker", f8="wires of a monitor")
    config.steer.update({"name": "matching", "features": ()} | ways["matching"])
    stage.run(config, workdir)
    described = files.read_json(workdir / "steer" / "matching" / stage.DIRECTIONS)
    assert [each["key"] for each in described] == ["add-7", "add-8"]
    config.steer.update({"name": "numbered"} | ways["numbered"])
    monkeypatch.setattr(stage.Sweep, "load", None)  # it is finished, and not begun again
    assert stage.run(config, workdir)["directions"] == 1


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("features", (N_FEATURES,), f"feature {N_FEATURES}"),
        ("match", "no such words", "matches no feature"),
        ("combinations", (f"5-{N_FEATURES}",), f"feature {N_FEATURES}"),
    ],
)
def test_features_that_do_not_exist_are_refused_before_anything_is_measured(
    workdir: Path, monkeypatch: pytest.MonkeyPatch, field: str, value: object, words: str
) -> None:
    monkeypatch.delattr(MethodInputs, "measure")
    config = make_config()
    with config.unlocked():
        config.steer[field] = value
    with pytest.raises(UserError, match=words):
        stage.run(config, workdir)


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
    assert set(summary["headline"]) <= set(BUILT_IN)
    assert all(row["mean_nll"] > 0 for row in table.to_pylist())

"""The steering sweep and its evaluation on a small random model."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ml_collections import ConfigDict

from maira_jax.checkpoint import store
from maira_jax.errors import UserError
from maira_jax.generate import generate
from maira_jax.model import maira2
from maira_jax.model.config import to_hf_dict
from maira_jax.pretrain.run import model_config
from maira_jax.processing import build_tokenizer
from maira_jax.processing.prompt import reporting_prompt
from maira_jax.processing.tokens import Kind
from maira_jax.run import files
from maira_jax.run.stage import Stage
from maira_jax.studies import load_studies
from sae import autoencoder
from sae.activations import Layout, StoreWriter
from sae.autoencoder import Sae
from sae.checkpoint import save_sae
from steer import evaluate, sweep
from steer.directions import StudyMeans
from steer.prompts import Prompts

N_STUDIES, D_MODEL, N_FEATURES, SITE = 12, 32, 64, "language.1.resid_post"
PREPROCESSOR = {
    "crop_size": {"height": 28, "width": 28},
    "image_mean": [0.5307] * 3,
    "image_processor_type": "BitImageProcessor",
    "image_std": [0.2583] * 3,
    "resample": 3,
    "size": {"shortest_edge": 28},
} | {f"do_{step}": True for step in ("center_crop", "convert_rgb", "normalize", "rescale", "resize")}


def make_config() -> ConfigDict:
    steer = {
        "features": (),
        "match": "",
        "top": 2,
        "arms": ("feature", "means", "random"),
        "strengths": (-4.0, 4.0),
        "unit": "max_activation",
        "studies": 4,
        "batch_size": 6,
        "max_new_tokens": 12,
    }
    studies = {"source": "phantom", "n": N_STUDIES, "seed": 2, "size": 28}
    return ConfigDict({"seed": 0, "studies": studies, "steer": steer, "evaluate": {"bootstrap": 50}})


def write_model(directory: Path, studies: list) -> None:
    texts = [t for s in studies for t in (reporting_prompt(s).content.replace("<image>", " "), s.findings)]
    build_tokenizer.from_corpus(texts, 400, directory)
    section = ConfigDict(
        {
            "vision": {"width": 32, "layers": 1, "heads": 2, "patch_size": 14, "image_size": 28},
            "text": {"width": D_MODEL, "mlp_width": 64, "layers": 3, "heads": 2},
        }
    )
    cfg = model_config(section, 400)
    files.write_json(directory / "config.json", to_hf_dict(cfg))
    files.write_json(directory / "preprocessor_config.json", PREPROCESSOR)
    store.save(directory, maira2.init(cfg, jax.random.key(3)))


def write_activations(directory: Path, studies: list, rng: np.random.Generator) -> None:
    per_study = 6
    n = per_study * len(studies)
    tokens = pa.table(
        {
            "study": np.repeat(np.arange(len(studies)), per_study).astype(np.int32),
            "position": np.tile(np.arange(per_study), len(studies)).astype(np.int32),
            "token_id": np.full(n, 7, np.int32),
            "kind": np.tile([Kind.INDICATION, *[Kind.FINDINGS] * 5], len(studies)).astype(np.int8),
        }
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
    layout = Layout(n, D_MODEL, "float32", 128, 64)
    writer = StoreWriter(directory, layout, tokens, table, {"site": SITE})
    writer.write(0, rng.normal(size=(n, D_MODEL)).astype(np.float32))


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory with everything that steering reads."""
    workdir = tmp_path_factory.mktemp("run")
    config, rng = make_config(), np.random.default_rng(0)
    studies = list(load_studies(config.studies))
    for name in ("model", "activations", "sae", "interp"):
        with Stage(workdir, name, {"test": name}) as stage:
            if name == "model":
                write_model(stage.dir, studies)
            elif name == "activations":
                write_activations(stage.dir, studies, rng)
            elif name == "sae":
                params = autoencoder.init(jax.random.key(1), D_MODEL, N_FEATURES, jnp.zeros(D_MODEL))
                save_sae(stage.dir, Sae(params, 0.1, 4, (32, 32), {"site": SITE}))
            else:
                features = {
                    "feature": np.arange(N_FEATURES, dtype=np.int32),
                    "explanation": [f"mentions word {i}" for i in range(N_FEATURES - 1)] + ["oedema of the lung"],
                    "max_activation": np.full(N_FEATURES, 6.0),
                }
                pq.write_table(pa.table(features), stage.dir / "features.parquet")
                concepts = {
                    "concept": ["cardiomegaly", "oedema", "pneumothorax"],
                    "feature": np.array([5, 9, 5], np.int32),
                    "f1": [0.9, 0.8, 0.95],
                }
                pq.write_table(pa.table(concepts), stage.dir / "concepts.parquet")
            stage.finish({})
    return workdir


@pytest.fixture()
def workdir(inputs: Path, tmp_path: Path) -> Path:
    """A fresh run directory on the same inputs."""
    for name in ("model", "activations", "sae", "interp"):
        (tmp_path / name).symlink_to(inputs / name)
    return tmp_path


@pytest.fixture(scope="module")
def swept(inputs: Path) -> tuple[Path, dict]:
    counts = sweep.run(make_config(), inputs)
    return inputs, counts


def lines_of(workdir: Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / "steer" / sweep.GENERATIONS).read_text().splitlines()]


def test_a_line_a_study_direction_and_strength(swept: tuple[Path, dict]) -> None:
    workdir, counts = swept
    lines = lines_of(workdir)
    # Feature 5 is best for two concepts and takes the better one; oedema is in no training study,
    # so its difference of means does not exist.
    keys = ["feature-5", "random-5", "feature-9", "random-9"]
    described = files.read_json(workdir / "steer" / sweep.DIRECTIONS)
    assert [d["key"] for d in described] == keys
    assert [d["target"]["concept"] for d in described] == ["pneumothorax"] * 2 + ["oedema"] * 2
    assert np.load(workdir / "steer" / "directions.npy").shape == (4, D_MODEL)
    assert counts["generations"] == len(lines) == 4 + 4 * 4 * 2
    triples = [(line["study"], line["direction"], line["strength"]) for line in lines]
    assert len(set(triples)) == len(triples)
    by_study = {line["study"]: line["steered"] for line in lines if line["direction"] == "none"}
    assert all(line["original"] == by_study[line["study"]] for line in lines)
    assert len(by_study) == 4


def test_strength_zero_is_the_unsteered_report(swept: tuple[Path, dict]) -> None:
    """Byte for byte what plain generation, another program without edits, writes."""
    workdir, _ = swept
    params, cfg = store.load(workdir / "model")
    originals = {line["study"]: line["original"] for line in lines_of(workdir)}
    studies = [s for s in load_studies(make_config().studies) if s.study_id in originals]
    prompts = Prompts.of(studies, workdir / "model")
    tokens, mask, pixels = prompts.batch(range(len(studies)))
    ids, lengths = generate(params, cfg, tokens, mask, pixels, max_new_tokens=12, eos_id=prompts.tokenizer.eos_id)
    for i, study in enumerate(studies):
        plain = prompts.tokenizer.decode(np.asarray(ids)[i, : int(lengths[i])])
        assert plain == originals[study.study_id]
        assert plain


def test_strength_changes_the_report_and_nothing_recompiles(swept: tuple[Path, dict]) -> None:
    workdir, _ = swept
    lines = lines_of(workdir)
    steered = [line for line in lines if line["strength"]]
    assert sum(line["steered"] != line["original"] for line in steered) > len(steered) / 2
    before = generate._cache_size()
    again = make_config()
    again.steer.strengths = (1.0, 16.0)
    again.steer.features = (1, 2)
    for name in ("model", "activations", "sae", "interp"):
        (workdir / "again").mkdir(exist_ok=True)
        (workdir / "again" / name).symlink_to(workdir / name)
    sweep.run(again, workdir / "again")
    assert generate._cache_size() == before


def test_every_arm_moves_equally_far(swept: tuple[Path, dict]) -> None:
    workdir, _ = swept
    vectors = np.load(workdir / "steer" / "directions.npy")
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-6)
    assert {d["unit"] for d in files.read_json(workdir / "steer" / sweep.DIRECTIONS)} == {6.0}


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it."""


@pytest.mark.parametrize(("batches", "cut"), [(0, 0), (2, 0), (3, 57), (5, 1)])
def test_a_killed_sweep_ends_with_the_same_file(
    swept: tuple[Path, dict], workdir: Path, monkeypatch: pytest.MonkeyPatch, batches: int, cut: int
) -> None:
    """Killed after some batches, the last `cut` bytes of which did not reach the disk."""
    calls = []
    write = sweep.Writer.write

    def failing(self: sweep.Writer, rows: list) -> list:
        if len(calls) == batches:
            raise Killed
        calls.append(len(rows))
        return write(self, rows)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(sweep.Writer, "write", failing)
        sweep.run(make_config(), workdir)
    path = workdir / "steer" / sweep.GENERATIONS
    path.write_bytes(path.read_bytes()[: len(path.read_bytes()) - cut])
    redone = []
    monkeypatch.setattr(sweep.Writer, "write", lambda self, rows: redone.append(1) or write(self, rows))
    sweep.run(make_config(), workdir)
    assert path.read_bytes() == (swept[0] / "steer" / sweep.GENERATIONS).read_bytes()
    assert len(redone) == 6 - batches + (1 if cut else 0)


def test_features_by_explanation(inputs: Path, workdir: Path) -> None:
    config = make_config()
    config.steer.match = "Oedema of"
    config.steer.studies, config.steer.arms = 1, ("feature",)
    sweep.run(config, workdir)
    steered = [line for line in lines_of(workdir) if line["strength"]]
    assert {line["settings"]["feature"] for line in steered} == {N_FEATURES - 1}
    assert {line["settings"]["concept"] for line in steered} == {"oedema"}


def test_difference_of_means(inputs: Path) -> None:
    from sae.activations import Store

    activations = Store.open(inputs / "activations")
    means = StudyMeans.of(activations)
    x = activations.read(0, 36).reshape(6, 6, D_MODEL)[:, 1:]  # training studies, findings tokens
    expected = x[::2].mean((0, 1)) - x[1::2].mean((0, 1))
    np.testing.assert_allclose(means.difference("cardiomegaly"), expected, atol=1e-6)
    assert means.difference("oedema") is None
    np.testing.assert_allclose(means.residual_norm, np.linalg.norm(x, axis=-1).mean(), rtol=1e-6)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("strengths", (0.0,), "steer.strengths"),
        ("unit", "metres", "steer.unit"),
        ("features", (N_FEATURES,), f"feature {N_FEATURES}"),
        ("match", "no such words", "matches no feature"),
        ("arms", ("magic",), "steer.arms"),
        ("studies", 0, "steer.studies"),
    ],
)
def test_wrong_settings_are_refused(workdir: Path, field: str, value: object, words: str) -> None:
    config = make_config()
    with config.unlocked():
        config.steer[field] = value
    with pytest.raises(UserError, match=words):
        sweep.run(config, workdir)


def test_evaluation_of_the_sweep(swept: tuple[Path, dict]) -> None:
    workdir, counts = swept
    result = evaluate.run(make_config(), workdir)
    table = pq.read_table(workdir / "evaluation" / evaluate.RESULTS)
    assert table.num_rows == counts["generations"] == result["generations"]
    assert table["line"].to_pylist() == list(range(table.num_rows))
    zero = [row for row in table.to_pylist() if row["arm"] == "none"]
    assert all(row["identical"] and row["no_change"] and not row["eligible"] for row in zero)
    summary = files.read_json(workdir / "evaluation" / evaluate.SUMMARY)
    assert set(summary["headline"]) <= {"feature", "random"}

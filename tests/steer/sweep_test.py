"""What a sweep is made of: the features that are chosen, the autoencoder and the studies."""

import dataclasses
import json
import pickle
import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from maira_jax.errors import UserError
from maira_jax.run import files, processes
from maira_jax.run.stages.stage import Stage
from maira_jax.studies.readers import load_studies
from sae.activations.store import ActivationStore
from sae.formats import safetensors as plain_file
from sae.saved import load_sae
from steer import evaluate, stage, sweep
from steer.methods import MethodInputs
from steer.methods.direction import Direction
from steer.selection import SELECTIONS
from steer.selection.catalogue import FeatureCatalogue
from steer.sweep import SelectedDirections, with_prior_image
from tests.helpers.steer_run import N_FEATURES, lines_of, make_config


def test_directions_are_taken_from_the_first_process_alone(tmp_path, monkeypatch):
    path, made = tmp_path / ".directions.tmp", SelectedDirections([Direction.none(3)], [{"rule": "pilot"}])
    path.write_bytes(pickle.dumps(made))
    digest = files.sha256(path)
    monkeypatch.setattr(processes, "count", lambda: 2)
    monkeypatch.setattr(processes, "is_first", lambda: False)
    monkeypatch.setattr(processes, "broadcast", lambda value: digest)
    found = sweep._of_first(lambda: None, tmp_path)
    assert [direction.key for direction in found.directions] == [direction.key for direction in made.directions]
    assert found.scores == made.scores
    path.write_bytes(pickle.dumps(SelectedDirections([Direction.none(4)], [])))
    with pytest.raises(UserError, match="directions.tmp is not what the first process wrote: steer again"):
        sweep._of_first(lambda: None, tmp_path)


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


def test_features_by_explanation(inputs: Path, workdir: Path, capsys: pytest.CaptureFixture) -> None:
    config = make_config()
    config.steer.match = "Oedema of"
    config.steer.studies, config.steer.methods = 1, ("add",)
    stage.run(config, workdir)
    steered = [line for line in lines_of(workdir) if line["strength"]]
    assert {line["settings"]["feature"] for line in steered} == {N_FEATURES - 1}
    assert {line["settings"]["concept"] for line in steered} == {"oedema"}
    shown = capsys.readouterr().err
    assert f"steer: 1 of 1 features that match (steer.top)\nsteer: feature {N_FEATURES - 1} oedema: oedema of" in shown
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


def test_the_prior_image_of_studies():
    studies = list(load_studies(make_config().studies))
    without = [study for study in studies if study.prior_frontal is None]
    assert 0 < len(without) < len(studies)
    assert with_prior_image(studies, "own") is studies and with_prior_image(studies, "none") == without
    for study, shown in zip(without, with_prior_image(studies, "repeated"), strict=True):
        assert shown.prior_frontal is study.frontal
        unchanged = {field.name for field in dataclasses.fields(study)} - {"prior_frontal"}
        assert all(getattr(shown, name) is getattr(study, name) for name in unchanged)
    with_prior = [study for study in studies if study.prior_frontal is not None]
    with pytest.raises(UserError, match="steer.prior_image is none, but every study has a prior image"):
        with_prior_image(with_prior, "none")

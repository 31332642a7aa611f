"""Scores of heat maps against loops over patches, and which neurons and thresholds they use."""

import json

import jax
import numpy as np
import pyarrow as pa
import pytest

from interp.controls.control import bases
from interp.features.concepts import StudyLabels
from interp.medsae import localisation
from interp.medsae.boxed_images import BoxedImages, boxed_images
from interp.medsae.comparison import measure_bases
from interp.medsae.localisation import FOLDS, LabelledStudies, localise, score_maps
from interp.medsae.patient_groups import PatientGroups
from interp.medsae.vectors import study_vectors
from maira_jax.studies.study import Box, Study
from sae.activations.store import ActivationStore, StoreLayout, StoreWriter
from sae.activations.token_rows import TokenRows
from sae.autoencoder import Sae


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    covered = rng.random((12, 9)) * (rng.random((12, 9)) < 0.4) / 9
    inside = covered > 0.06
    return BoxedImages(
        np.arange(12), np.arange(12) * 9, np.full((12, 9), 1 / 9), covered, inside, covered.sum(1) + 0.05
    )


def iou(mask, images, i):
    covered, area = images.covered[i][mask].sum(), images.area[i][mask].sum()
    return covered / (area + images.box_area[i] - covered)


def test_scores_equal_loops(images):
    rng = np.random.default_rng(1)
    maps = rng.integers(-2, 4, (12, 9)).astype(float)  # with ties
    maps[3] = -1.0
    fold = np.arange(12) % 3
    found = score_maps(maps, images, fold)
    for i in range(12):
        strongest = np.flatnonzero(maps[i] == maps[i].max())
        assert found.pointing[i] == pytest.approx(np.mean([images.inside[i][p] for p in strongest]))
        assert found.touching[i] == pytest.approx(np.mean([images.covered[i][p] > 0 for p in strongest]))
        weight = np.maximum(maps[i], 0) if (maps[i] > 0).any() else np.ones(9)
        assert found.inside[i] == pytest.approx((weight * images.covered[i] * 9).sum() / weight.sum())
        candidates = [iou(maps[i] > t, images, i) for t in (-9, *np.unique(maps[i]))]
        assert found.oracle_iou[i] == pytest.approx(max(candidates))
        others = np.flatnonzero(fold != fold[i])
        means = {t: np.mean([iou(maps[j] > t, images, j) for j in others]) for t in range(-9, 5)}
        best = max(means.values())
        assert found.iou[i] in [
            pytest.approx(iou(maps[i] > t, images, i)) for t, m in means.items() if m > best - 1e-12
        ]


def test_one_image_has_no_threshold_and_a_map_of_the_boxes_is_perfect(images):
    assert np.isnan(score_maps(np.ones((12, 9)), images, np.zeros(12)).iou).all()
    found = score_maps(images.covered, images, np.arange(12) % 3)
    assert (found.touching == 1).all()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """120 images of 3 x 3 patches; feature 2 is active on the patch with the finding, feature 5 where it is not."""
    rng = np.random.default_rng(2)
    n, n_features = 120, 8
    place, has = rng.integers(0, 9, n), rng.random(n) < 0.5
    f = np.abs(rng.normal(size=(n, 9, n_features))) * (rng.random((n, 9, n_features)) < 0.3)
    f[:, :, 2] = 0.1 * f[:, :, 2]
    f[has, place[has], 2] += 3
    f[:, :, 5] = 0.2 * f[:, :, 5]
    f[has, (place[has] + 4) % 9, 5] += rng.uniform(0, 3, has.sum())
    directions = np.linalg.qr(rng.normal(size=(10, 10)))[0][:n_features]
    x = (f.reshape(-1, n_features) @ directions).astype(np.float32)
    studies = pa.table(
        {"study_id": [f"s{i}" for i in range(n)], "patient_id": [f"p{i // 2}" for i in range(n)],
         "split": ["train"] * n, "labels": [json.dumps({"mass": bool(value)}) for value in has],
         "start": np.arange(n) * 9, "stop": np.arange(1, n + 1) * 9}
    )  # fmt: skip
    directory = tmp_path_factory.mktemp("store")
    source = {"encoder": "made_up", "rows": "patches", "grid": [3, 3], "view": "crop"}
    layout = StoreLayout.of(*x.shape, "float32")
    writer = StoreWriter(directory, layout, TokenRows.without_tokens(n, 9), studies, source)
    for shard in range(layout.n_shards):  # whose size other tests change
        writer.write(shard, x[slice(*layout.rows(shard))])
    params = {"W_enc": directions.T, "b_enc": np.zeros(n_features), "W_dec": directions, "b_dec": np.zeros(10)}
    sae = Sae({name: np.float32(value) for name, value in params.items()}, 0.05, 2, (n_features,))
    boxed = {
        f"s{i}": Study(f"s{i}", f"p{i // 2}", np.zeros((30, 30), np.uint8),
                       boxes=(Box("mass", place[i] % 3 / 3, place[i] // 3 / 3, 0.33, 0.33),) if has[i] else ())
        for i in range(n)
    }  # fmt: skip
    return ActivationStore.open(directory), sae, boxed


def test_the_best_feature_finds_the_place_and_controls_do_not(run, tmp_path, monkeypatch):
    monkeypatch.setattr(localisation, "_BLOCK_ROWS", 50)
    store, sae, studies = run
    directions = bases(sae, store, 0)
    vectors = study_vectors(sae, store, ("image",), tmp_path / "vectors", jax.devices(), directions)
    labels = StudyLabels.from_json(store.studies["labels"].to_pylist())
    groups = PatientGroups.of(store.studies["patient_id"].to_pylist(), 40, 0)
    found = measure_bases(vectors, labels, groups, groups.folds(FOLDS), 0)
    correlation = {basis: rules["medsae"].train_correlation for basis, rules in found.items()}
    boxed = boxed_images(store, studies, labels.concepts)
    given = LabelledStudies(vectors.study, labels, groups, vectors.activation, correlation)
    summary, table = localise(boxed, given, sae, store, directions, 0)
    maps = summary["maps"]
    assert summary["images"] == {"mass": int(labels.value.sum())}
    assert maps["features"]["pointing"] == 1.0 and maps["features"]["inside"] > 0.8 and maps["features"]["iou"] > 0.9
    assert maps["uniform map"]["pointing"] == pytest.approx(1 / 9) and maps["perfect map"]["pointing"] == 1.0
    assert maps["random features"]["pointing"] < 0.5 and maps["raw dimensions"]["pointing"] < 1
    assert maps["16 features"]["pointing"] > 0.9 > maps["16 random directions"]["pointing"]
    low, high = summary["differences"]["features minus random features"]["pointing"]["interval"]
    assert 0.5 < low <= high
    rows = [row for row in table.to_pylist() if row["map"] == "features"]
    assert {row["neuron"] for row in rows} == {2} and len({row["study_id"] for row in rows}) == len(rows)
    # The map of a feature is its activation on the patches, in their order.
    neurons = {"features": np.array([2]), "raw dimensions": np.array([1]), "random directions": np.array([0])}
    shown = localisation.neuron_maps(boxed["mass"], neurons, sae, store, directions)
    first = int(boxed["mass"].first[7])
    np.testing.assert_allclose(
        shown["features"][0, 7], np.asarray(sae.encode(store.read(first, first + 9)))[:, 2], atol=1e-6
    )
    np.testing.assert_allclose(shown["raw dimensions"][0, 7], store.read(first, first + 9)[:, 1])

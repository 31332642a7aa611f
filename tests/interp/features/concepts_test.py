"""Concept tables against trying every threshold."""

import dataclasses
import json

import numpy as np
import pytest

from interp.features import columns, concepts


def slow_f1(score, value, threshold):
    fires = score > threshold
    return 2 * (fires & value).sum() / max(fires.sum() + value.sum(), 1)


@pytest.fixture(scope="module")
def world():
    rng = np.random.default_rng(0)
    n, n_features = 120, 300  # more than one block of features
    value = rng.random((n, 3)) < [0.5, 0.2, 0.05]
    known = rng.random((n, 3)) < 0.9
    score = np.maximum(rng.normal(size=(n, n_features)), 0).astype(np.float32)
    score[:, 7] += 2 * value[:, 0]  # detects the first concept
    score[:, 290] = np.round(score[:, 290] + 3 * value[:, 1])  # detects the second, with ties
    score[:, 5] = 0
    labels = concepts.StudyLabels(("a", "b", "c"), value, known)
    return score, labels, rng.random(n) < 0.4


def test_fit_equals_trying_every_threshold(world):
    score, labels, held_out = world
    found = concepts.fit(score, labels, held_out)
    for c in range(3):
        known = labels.known[:, c]
        train, test = known & ~held_out, known & held_out
        for feature in (0, 5, 7, 123, 290, 299):
            s, value = score[:, feature], labels.value[:, c]
            cuts = np.unique(np.append(s[train], 0.0))
            cuts = (cuts[:-1] + cuts[1:]) / 2  # studies without activation stay negative
            best = max((slow_f1(s[train], value[train], cut) for cut in cuts), default=0.0)
            assert found.train_f1[c, feature] == pytest.approx(best)
            threshold = found.threshold[c, feature]
            assert slow_f1(s[train], value[train], threshold) == pytest.approx(best)
            assert found.f1[c, feature] == pytest.approx(slow_f1(s[test], value[test], threshold))
            fires = s[test] > threshold
            hits = (fires & value[test]).sum()
            assert found.precision[c, feature] == pytest.approx(hits / max(fires.sum(), 1))
            assert found.recall[c, feature] == pytest.approx(hits / max(value[test].sum(), 1))


def test_table_names_the_best_feature_and_leaves_rare_concepts_out(world):
    score, labels, held_out = world
    table, left_out = concepts.table(concepts.fit(score, labels, held_out), labels, held_out, 5)
    rows = {row["concept"]: row for row in table.to_pylist()}
    assert rows["a"]["feature"] == 7 and rows["b"]["feature"] == 290
    assert rows["b"]["f1"] > 0.9
    assert len(rows["a"]["runners_up"]) == 4 and 7 not in rows["a"]["runners_up"]
    known = labels.known[:, 0] & held_out
    assert rows["a"]["n_held_out"] == known.sum()
    assert rows["a"]["prevalence"] == pytest.approx(labels.value[known, 0].mean())
    positive = (labels.known[:, 2] & labels.value[:, 2] & held_out).sum()
    reason = f"held-out studies with it: {positive}, but interpret.min_studies asks for 5"
    assert left_out == {"c": reason}


def test_labels_from_json_keep_unknown_apart():
    labels = concepts.StudyLabels.from_json([json.dumps({"b": True}), json.dumps({"a": False, "b": False}), "{}"])
    assert labels.concepts == ("a", "b")
    np.testing.assert_array_equal(labels.known, [[False, True], [True, True], [False, False]])
    np.testing.assert_array_equal(labels.value, [[False, True], [False, False], [False, False]])
    assert concepts.StudyLabels.from_json(["{}", "{}"]).value.shape == (2, 0)


def test_always_f1_is_that_of_saying_yes_to_every_train_study(world):
    score, labels, held_out = world
    found = concepts.fit(score[:, :2], labels, held_out)
    for c in range(3):
        train = labels.known[:, c] & ~held_out
        assert found.always_f1[c] == pytest.approx(slow_f1(np.ones(train.sum()), labels.value[train, c], 0))


def test_no_feature_has_a_concept_that_was_left_out_or_that_it_does_not_detect(world):
    score, labels, held_out = world
    found = concepts.fit(score, labels, held_out)
    named = columns.of_concepts(labels, found, ())
    assert {"a", "b", "c"} == set(named["concept"]) - {None} and named["concept"][7] == "a"
    assert min(f1 for f1 in named["concept_f1"] if f1 is not None) > 0
    rest = columns.of_concepts(labels, found, {"a": "rare", "c": "rare"})
    assert set(rest["concept"]) == {"b", None} and rest["concept"][290] == "b"
    assert columns.of_concepts(labels, found, "abc") == {"concept": [None] * 300, "concept_f1": [None] * 300}
    missed = dataclasses.replace(found, f1=np.zeros_like(found.f1))
    assert set(columns.of_concepts(labels, missed, ())["concept"]) == {None}

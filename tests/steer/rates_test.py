"""What rules of selection chose, against what steering did; the evaluate stage tests the rest of `steer.rates`."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from steer.rates import HISTORY, _rank_correlation, selection_rates, summarise

CONCEPTS = {"oedema": (1, 2), "cardiomegaly": (2, 3)}
ON = {("oedema", 1): 0.5, ("oedema", 2): 0.9, ("cardiomegaly", 2): 0.3, ("cardiomegaly", 3): 0.1}
PLAIN = {
    "off_target_attributes": False,
    "off_target_extent": 0.0,
    "no_change": False,
    "identical": False,
    "degenerate": "",
    "edit_distance": 1,
}
PLAIN |= {
    "repetition": 0.0,
    "mean_nll": 1.0,
    "words": 10,
    "length": 1.0,
    "format_kept": True,
    **dict.fromkeys(HISTORY, 0.0),
    "intended": "added",
    "eligible": True,
    "off_target": False,
}


def row(study, concept, feature, strength=1.0, method="add", **fields):
    own = {"study_id": f"s{study:02}", "concept": concept, "feature": feature, "strength": strength, "method": method}
    return PLAIN | own | fields


def make_rows():
    rows = [row(study, "", None, 0.0, "none", eligible=False, on_target=False) for study in range(40)]
    for (concept, feature), share in ON.items():
        for study in range(40):
            hit = (study * 7) % 40 < 40 * share
            rows.append(row(study, concept, feature, on_target=hit))
            rows.append(row(study, concept, feature, method="random", on_target=not hit))
    return rows


def test_what_a_method_has_more_than_random_directions():
    found = summarise(make_rows(), 200, 0)
    more, own, other = found["above_random"]["add"]["on_target"], *(found["headline"][m] for m in ("add", "random"))
    assert set(found["above_random"]) == {"add"}
    assert more["difference"] == pytest.approx(own["on_target"]["rate"] - other["on_target"]["rate"], abs=1e-5)
    assert more["interval"][0] < more["difference"] < more["interval"][1]
    # A study's report is on target for one of the two: what one has more, the other has less, so the difference varies
    # twice as much as a rate, where independent ones would by the root of two.
    width = own["on_target"]["high"] - own["on_target"]["low"]
    assert np.ptp(more["interval"]) == pytest.approx(2 * width, rel=0.02)
    only = summarise([row for row in make_rows() if row["method"] != "random"], 20, 0)
    assert only["above_random"] == {}


def make_scores(rule, values):
    scores = []
    for concept in CONCEPTS:
        own = {key[1]: value for key, value in values.items() if key[0] == concept}
        for rank, feature in enumerate(sorted(own, key=own.get, reverse=True), start=1):
            scores.append({"concept": concept, "feature": feature, "rule": rule, "score": own[feature], "rank": rank})
    return scores


def test_rates_of_what_each_rule_chose_and_rank_correlations():
    rows, backwards = make_rows(), {key: -value for key, value in ON.items()}
    partly = dict(list(ON.items())[:2])
    scores = make_scores("best", ON) + make_scores("worst", backwards) + make_scores("partly", partly)
    found = selection_rates(rows, scores, 100, 0)
    assert found["best"]["spearman"] == pytest.approx(1.0) and found["worst"]["spearman"] == pytest.approx(-1.0)
    assert found["best"]["low"] <= 1.0 and found["best"]["n"] == 4
    assert found["partly"]["spearman"] is None and found["partly"]["n"] == 2
    assert found["best"]["methods"]["add"]["on_target"]["rate"] == pytest.approx(0.6, abs=0.12)
    assert found["worst"]["methods"]["add"]["on_target"]["rate"] == pytest.approx(0.3, abs=0.12)
    assert found["best"]["methods"]["random"]["on_target"]["rate"] == pytest.approx(0.4, abs=0.12)
    assert found["partly"]["methods"]["add"]["on_target"]["n"] == 20, "the half that did not choose, of one concept"


def test_the_interval_of_a_rank_correlation_is_that_of_resampled_pairs():
    pairs = np.random.default_rng(1).normal(size=(9, 2))
    pairs[:, 1] += pairs[:, 0]
    found = _rank_correlation(pairs, 200, 5)
    drawn = np.random.default_rng([5, 3]).integers(9, size=(200, 9))
    values = [spearmanr(*pairs[rows].T)[0] for rows in drawn]
    assert found["spearman"] == pytest.approx(spearmanr(*pairs.T)[0])
    assert (found["low"], found["high"]) == pytest.approx(tuple(np.quantile(values, (0.025, 0.975))))


def test_strengths_end_where_texts_degenerate():
    rows = make_rows()
    for study in range(40):
        rows.append(row(study, "oedema", 1, 2.0, on_target=True, degenerate="repetition" if study % 3 == 0 else ""))
        rows.append(row(study, "oedema", 1, 4.0, on_target=True))
    scores = make_scores("best", ON)
    found = selection_rates(rows, scores[1:2], 100, 0)["best"]["methods"]
    assert not found, "the second choice is not reported"
    scores = make_scores("only", {("oedema", 1): 1.0})
    assert selection_rates(rows, scores, 100, 0)["only"]["methods"]["add"]["on_target"]["rate"] < 0.7, "strength 1"

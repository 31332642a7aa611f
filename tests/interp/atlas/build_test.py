"""The atlas holds what the stages found, of every feature, in chunks."""

import numpy as np
import pyarrow.parquet as pq

from tests.helpers.atlas_page import ATTACK
from tests.helpers.interp_run import EVERYWHERE


def test_the_list_has_every_feature_and_the_first_view_the_judges_name(plain):
    atlas, listed = plain.atlas, plain.atlas.chunk("list")
    table = pq.read_table(plain.workdir / "interp" / "features.parquet").to_pylist()
    assert listed["name"] == [row["name"] for row in table]
    assert "fewer than 20 of the sampled train contexts" in listed["reason"][EVERYWHERE]
    assert atlas.head["summary"]["judge"] == "offline judge (no language model)"
    assert {row["concept"] for row in atlas.head["concepts"]} >= {"communication", "pneumothorax"}
    assert atlas.head["sweeps"] == [] and atlas.head["sets"] == {} and atlas.head["label"] is None
    assert atlas.head["localize"] is None
    measures = [row[0] for row in atlas.head["advantage"]["rows"]]
    assert "detection" in measures and "mean F1 of concepts" in measures
    assert len(atlas.head["advantage"]["sentences"]) == len(measures) - 1
    assert atlas.head["run"]["stages"] == {"export": False, "label": False, "similar": False}
    for feature, row in enumerate(table):
        details = atlas.details(feature)
        assert details["explanation"] == row["explanation"] and details["children"] == row["children"]
        first, counts = details["histogram"]
        assert sum(counts) == sum(row["histogram"]) and counts == row["histogram"][first : first + len(counts)]
        if row["promoted"]:
            np.testing.assert_allclose(details["promoted_logit"], row["promoted_logit"], rtol=1e-3)


def test_stages_sets_and_sweeps_are_shown_with_each_feature(full):
    atlas = full.atlas
    assert atlas.head["run"]["stages"]["label"] and [sweep["name"] for sweep in atlas.head["sweeps"]] == [
        "concepts",
        "again",
    ]
    assert "monosemanticity by rank" in [row[0] for row in atlas.head["advantage"]["rows"]]
    steered = {row["concept"]: row["steering"] for row in atlas.head["concepts"]}
    assert steered["communication"]["added"]["strength"] == 2.0 and steered["pneumothorax"] == {}
    found = atlas.head["sets"]["published"]
    assert (found["explained"], found["scored"], found["mean"], found["spearman"]) == (2, 0, None, None)
    assert 0 < found["agreement"] < 1 and found["agreement_shuffled"] < found["agreement"]
    assert atlas.chunk("list")["sets"]["published"] == {"0": "effusions", "4": "phone calls"}
    assert atlas.head["localize"]["site"] == "language.0.resid_post" and len(atlas.head["localize"]["points"]) == 1
    details = atlas.details(4)
    assert details["sets"]["published"]["score"] == 6.5 and ATTACK in details["sets"]["published"]["explanation"]
    assert list(details["steering"]) == ["concepts", "again"] and atlas.details(5)["steering"] == {}
    (other,) = atlas.details(5)["selection"]["again"]
    assert (other["rule"], other["rank"], other["of"], other["chosen"]) == ("concept", 2, 2, False)
    assert [row["rule"] for row in details["selection"]["concepts"]] == ["concept", "pilot"]
    assert atlas.head["sweeps"][0]["rates"]["selection"]["pilot"]["spearman"] == 0.7
    correlation = details["label"]["correlation"]
    assert max(correlation, key=lambda label: correlation[label] or 0) == "communication"

"""How far heat maps agree with boxes, as a feature's page shows it."""

import math

import pyarrow as pa
import pyarrow.parquet as pq

from interp.atlas.gathering.label_results import box_scores
from interp.medsae.localisation import SCHEMA


def row(concept, study, kind, neuron, touching, iou=0.5):
    scores = {"pointing": 0.0, "touching": touching, "inside": 0.25, "iou": iou, "oracle_iou": 0.75}
    return {"concept": concept, "study_id": study, "map": kind, "neuron": neuron} | scores


def test_each_feature_has_the_means_of_the_images_that_it_was_not_chosen_on(tmp_path):
    rows = [
        row("mass", "a", "features", 3, 1.0),
        row("mass", "b", "features", 3, 0.5, math.nan),
        row("mass", "c", "features", 7, 0.0),
        row("effusion", "a", "features", 3, 0.25),
        row("mass", "a", "raw dimensions", 3, 0.125),
        *(row(concept, study, "random features", None, 0.375) for concept, study in (("mass", "b"), ("mass", "c"))),
        row("mass", "a", "random features", None, 0.125),
        row("effusion", "a", "random features", None, 1.0),
    ]
    assert box_scores(tmp_path) == {}
    (tmp_path / "manifest.json").write_text("{}")
    assert box_scores(tmp_path) == {}
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), tmp_path / "localisation.parquet")
    found = box_scores(tmp_path)
    assert sorted(found) == [3, 7]
    mass, effusion = found[3]
    assert (mass["concept"], mass["images"], mass["touching"], mass["iou"]) == ("mass", 2, 0.75, 0.5)
    assert mass["random"]["touching"] == 0.25 and mass["random"]["iou"] == 0.5
    assert (effusion["concept"], effusion["images"], effusion["touching"]) == ("effusion", 1, 0.25)
    assert found[7][0]["touching"] == 0.0 and found[7][0]["random"]["touching"] == 0.375
    without = [each for each in rows if each["map"] == "features"]
    pq.write_table(pa.Table.from_pylist(without, schema=SCHEMA), tmp_path / "localisation.parquet")
    assert box_scores(tmp_path)[7][0]["random"]["touching"] is None

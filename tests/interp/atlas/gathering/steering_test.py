"""The pairs of reports that the page shows of a steering sweep."""

import dataclasses
import shutil

from interp.atlas.disclosure import Disclosure
from interp.atlas.gathering.steering import SteeringSweep
from tests.helpers.atlas_page import ATTACK, add_steering


def test_pairs_are_the_first_eligible_ones_at_the_evaluated_strength(full):
    entry = full.atlas.details(4)["steering"]["concepts"]
    added = [example for example in entry["examples"] if example["intended"] == "added"]
    assert [example["study_id"][-1] for example in added] == ["0", "1", "2", "4"]  # the fourth is not eligible
    assert all(example["strength"] == 2.0 and example["outcome"]["on_target"] for example in added)
    assert added[0]["original"].endswith(ATTACK) and added[0]["steered"].endswith("A pacemaker is present.")
    assert [row["strength"] for row in entry["rates"]] == [2.0, 4.0]
    headline = full.atlas.head["sweeps"][0]["rates"]["headline"]["add"]
    assert headline["on_target"]["rate"] == headline["length"] == 1.0 and headline["history"] is None


def test_the_smallest_sets_have_their_rates(full, run_dir, tmp_path):
    (found,) = full.atlas.head["sweeps"][0]["sets"]
    assert (found["concept"], found["intended"], found["features"]) == ("communication", "added", [[5, 1.5], [4, 1.5]])
    assert found["rates"]["strength"] == 1.0 and found["rates"]["on_target"]["n"] == 5
    shutil.copytree(run_dir, tmp_path / "run")
    add_steering(tmp_path / "run", evaluated=False)
    (found,) = SteeringSweep.read(tmp_path / "run", "concepts").sets
    assert found["rates"] is None
    (tmp_path / "run" / "steer" / "concepts" / "sets.parquet").unlink()
    assert SteeringSweep.read(tmp_path / "run", "concepts").sets == []


def test_steering_without_evaluation_shows_the_largest_strength(run_dir, tmp_path):
    shutil.copytree(run_dir, tmp_path / "run")
    add_steering(tmp_path / "run", evaluated=False)
    sweep = SteeringSweep.read(tmp_path / "run", "concepts")
    examples = sweep.of(4, Disclosure())["examples"]
    assert {example["strength"] for example in examples} == {-2.0, 4.0}
    assert all(example["outcome"] is None for example in examples)
    assert sweep.rates() is None and sweep.of(3, Disclosure()) is None


def test_a_concept_has_the_rates_of_the_feature_that_was_steered_for_it(full):
    evaluation = full.atlas.head["sweeps"][0]["rates"]
    assert evaluation["concepts"] == ["communication"]
    sweep = SteeringSweep.read(full.workdir, "concepts")
    other = sweep.of_concept({"concept": "communication", "feature": 5})
    assert other["added"]["feature"] == 4 and other["added"]["on_target"]["rate"] == 1.0
    best = [*sweep.evaluation["best"], sweep.evaluation["best"][0] | {"feature": 5, "strength": 4.0}]
    both = dataclasses.replace(sweep, evaluation=sweep.evaluation | {"best": best})
    for feature, strength in ((5, 4.0), (4, 2.0), (3, 2.0)):
        found = both.of_concept({"concept": "communication", "feature": feature})
        assert found["added"]["strength"] == strength, "the detector's where it was steered"

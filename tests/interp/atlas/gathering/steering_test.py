"""The pairs of reports that the page shows of a steering sweep."""

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
    assert full.atlas.head["sweeps"][0]["rates"]["headline"]["add"]["on_target"]["rate"] == 1.0


def test_steering_without_evaluation_shows_the_largest_strength(run_dir, tmp_path):
    shutil.copytree(run_dir, tmp_path / "run")
    add_steering(tmp_path / "run", evaluated=False)
    sweep = SteeringSweep.read(tmp_path / "run", "concepts")
    examples = sweep.of(4, Disclosure())["examples"]
    assert {example["strength"] for example in examples} == {-2.0, 4.0}
    assert all(example["outcome"] is None for example in examples)
    assert sweep.rates() is None and sweep.of(3, Disclosure()) is None

"""The pairs of reports that the page shows of a steering sweep."""

import shutil

from tests.helpers.atlas_page import ATTACK, Page, add_steering, data_of, page_of, scripts


def test_steering_is_shown_when_its_stages_have_run(run_dir, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(run_dir, workdir)
    assert data_of(Page(page_of(workdir)[0]))["steering"] is None
    add_steering(workdir)
    text, _ = page_of(workdir)  # the old page is replaced, not refused
    data = data_of(Page(text))
    assert len(scripts(Page(text))) == 2
    (entry,) = data["steering"]["features"].values()
    added = [example for example in entry["examples"] if example["intended"] == "added"]
    # At the evaluated strength, the first eligible studies: the fourth is not eligible.
    assert [example["study_id"] for example in added] == ["s0", "s1", "s2", "s4"]
    assert all(example["strength"] == 2.0 and example["outcome"]["on_target"] for example in added)
    assert added[0]["original"].endswith(ATTACK) and added[0]["steered"].endswith("A pacemaker is present.")
    assert [row["strength"] for row in entry["rates"]] == [2.0, 4.0]
    assert data["evaluation"]["headline"]["add"]["on_target"]["rate"] == 1.0
    steered = {row["concept"]: row["steering"] for row in data["concepts"]}
    assert steered["communication"]["added"]["strength"] == 2.0 and steered["pneumothorax"] == {}


def test_steering_without_evaluation_shows_the_largest_strength(run_dir, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(run_dir, workdir, ignore=shutil.ignore_patterns("atlas"))
    add_steering(workdir, evaluated=False)
    data = data_of(Page(page_of(workdir)[0]))
    examples = data["steering"]["features"]["4"]["examples"]
    assert {example["strength"] for example in examples} == {-2.0, 4.0}
    assert all(example["outcome"] is None for example in examples) and data["evaluation"] is None

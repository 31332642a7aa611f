"""The page holds what the stages found, and is bounded in size."""

import shutil

import pyarrow.parquet as pq

from interp.atlas import data as data_lib
from interp.exemplars import selection
from tests.helpers.atlas_page import Page, data_of, page_of
from tests.helpers.interp_run import EVERYWHERE


def test_page_holds_every_feature_and_the_judges_name(run_dir):
    data = data_of(Page(page_of(run_dir)[0]))
    table = pq.read_table(run_dir / "interp" / "features.parquet").to_pylist()
    assert data["features"]["name"] == [row["name"] for row in table]
    assert "fewer than 20 of the sampled train contexts" in data["features"]["reason"][EVERYWHERE]
    assert data["summary"]["judge"] == "offline judge (no language model)"
    assert {row["concept"] for row in data["concepts"]} >= {"communication", "pneumothorax"}
    assert data["steering"] is None and data["evaluation"] is None
    optional = ("export", "label", "similar", "steer", "evaluation")
    assert data["run"]["stages"] == dict.fromkeys(optional, False)
    first, counts = data["features"]["histogram"][0]
    whole = table[0]["histogram"]
    assert sum(counts) == sum(whole) and counts == whole[first : first + len(counts)] and counts[0] and counts[-1]


def test_contexts_are_those_of_the_exemplars(run_dir):
    data = data_of(Page(page_of(run_dir)[0]))
    rows = pq.read_table(run_dir / "interp" / "exemplars.parquet").to_pylist()
    words = data["exemplars"]["tokens"]
    non_activating = selection.NON_ACTIVATING_KINDS
    known = {
        (row["feature"], row["kind"], row["study_id"], tuple(row["tokens"])): row
        for row in rows
        if row["split"] == "train"
    }
    for feature, contexts in data["exemplars"]["contexts"].items():
        kinds = [context[0] for context in contexts]
        assert kinds.count("top") <= 6 and all(kinds.count(kind) <= 3 for kind in non_activating)
        deciles = [context[1] for context in contexts if context[0] == "decile"]
        assert len(set(deciles)) == len(deciles) and (deciles == [] or max(deciles) <= 9)
        shown = [(context[0], tuple(context[4])) for context in contexts]
        assert len(set(shown)) == len(shown)
        for kind, _, section, study, tokens, percents in contexts:
            row = known[int(feature), kind, study, tuple(words[t] for t in tokens)]
            assert row["section"] == section
            assert (percents == []) == (kind in non_activating)
            if percents:
                assert percents[row["peak"]] == max(percents)


def test_the_size_of_the_page_is_bounded(run_dir, tmp_path, monkeypatch):
    workdir = tmp_path / "run"
    shutil.copytree(run_dir, workdir, ignore=shutil.ignore_patterns("atlas"))
    limits = {"_MAX_FEATURES": 2, "_MAX_TOP": 1, "_MAX_PER_DECILE": 0, "_MAX_NON_ACTIVATING": 0}
    for name, limit in limits.items():
        monkeypatch.setattr(data_lib, name, limit)
    text, counts = page_of(workdir)
    contexts = data_of(Page(text))["exemplars"]["contexts"]
    assert len(contexts) <= 2 and all(len(rows) == 1 for rows in contexts.values())
    assert counts["features"] == 12

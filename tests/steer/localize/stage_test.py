"""The whole stage on a small random model, and on the phantom, whose sites are known."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from configs import phantom
from maira_jax.checkpoint import convert
from maira_jax.errors import UserError
from maira_jax.inputs.regions import patch_boxes
from maira_jax.inputs.tokens import FRONTAL, token_filter_mask
from maira_jax.run import files
from maira_jax.studies.readers import load_studies
from steer.localize import stage, writing
from steer.localize.plan import load
from steer.program.sweep_writer import SweepWriter
from tests.helpers.localized import make_config


def rows_of(workdir):
    return pq.read_table(workdir / "localize" / stage.SITES).to_pylist()


def test_the_table_the_budget_and_what_a_killed_run_writes_again(localized_run, one_length, monkeypatch):
    config, written = make_config(), []
    whole = SweepWriter.write
    # The patches at findings come last: the run is killed before them.
    monkeypatch.setattr(
        SweepWriter, "write", lambda self, *a: whole(self, *a) if not self.patches else pytest.fail("killed")
    )
    with pytest.raises(pytest.fail.Exception, match="killed"):
        stage.run(config, localized_run)
    monkeypatch.setattr(SweepWriter, "write", lambda self, *a: written.append(len(self.patches)) or whole(self, *a))
    counts = stage.run(config, localized_run)
    assert all(written), "reports that are there are not written anew"
    lines = [json.loads(line) for line in (localized_run / "localize" / "generations.jsonl").read_text().splitlines()]
    assert counts["reports"] == len(lines)
    rows = rows_of(localized_run)
    assert [row["depth"] for row in rows] == [-1, -1, 0, 0, 2, 2]
    assert {row["section"] for row in rows} == {"image", "frontal"}
    assert all(0 <= row["read_auroc"] <= 1 and row["read_sae_auroc"] is None for row in rows)
    summary = files.read_json(localized_run / "localize" / stage.SUMMARY)
    assert summary["site"].startswith("language.") and len(summary["points"]) == 3
    assert "<svg" in (localized_run / "localize" / stage.CURVE).read_text()
    assert not (localized_run / "localize" / "parts").exists()
    assert stage.run(config, localized_run) == counts


def test_a_dry_run_says_what_it_takes_and_writes_nothing(localized_run):
    config = make_config()
    config.localize.update({"sites": ("language.embed",), "sections": ("generated",), "dry_run": True})
    before = sorted(localized_run.iterdir())
    found = stage.run(config, localized_run)
    assert found["passes"] >= 5 and found["studies_read"] == 40
    assert found["reports"] == 3 * (1 + 2) and found["prompts_read_again"] == 0
    assert found["writing_seconds_at_most"] >= 0 and sorted(localized_run.iterdir()) == before


def test_a_concept_that_cannot_be_measured_is_refused(localized_run):
    config = make_config()
    config.localize.concepts = ("fracture",)
    with pytest.raises(UserError, match=r"localize.concepts names 'fracture', .* choose from"):
        load(config, localized_run)


def test_the_patches_at_a_finding_are_those_that_its_boxes_touch(localized_run):
    config = make_config()
    model, plan = load(config, localized_run)
    group = next(group for group in plan.groups() if group.patches)
    study, concept = group.studies[0], group.patches[0]
    side = round(model.cfg.patches_per_image**0.5)
    height, width = study.frontal.shape
    touched = [
        any(
            box.x < x + w and x < box.x + box.width and box.y < y + h and y < box.y + box.height
            for box in study.boxes
            if box.name == concept
        )
        for x, y, w, h in patch_boxes(width, height, (side, side), "crop")
    ]
    assert any(touched)
    means = {
        point: writing.PointMeans(np.ones((1, model.cfg.text.hidden_size), np.float32), plan.labels)
        for point in group.points
    }
    rows = group.rows(plan.concepts, (1.0,), means, model.cfg.text.hidden_size)
    assert len(rows) == 1 + len(group.points)
    writer = writing.sweep_of(group, model.params, model.cfg, model.folder, rows, 0).writer
    edited = np.asarray(writer.prefill([0], writer.shape).edited)[0]
    kinds = writer.prompts.batch([0]).kinds
    np.testing.assert_array_equal(edited[token_filter_mask(kinds, FRONTAL)[0]], touched)
    assert edited.sum() == sum(touched)


@pytest.mark.drill
def test_the_phantom_is_steered_where_its_image_is_read(tmp_path):
    """Adding a difference of means at the image's tokens works at the embedding and after block 0, and after block 3 no
    longer."""
    config = phantom.get_config()
    config.localize.update(
        {
            "sites": tuple(f"language.{place}" for place in ("embed", *(f"{i}.resid_post" for i in range(6)))),
            "sections": ("frontal",),
            "autoencoder": False,
            "write_studies": 24,
        }
    )
    convert.run(config, tmp_path)
    stage.run(config, tmp_path)
    summary = files.read_json(tmp_path / "localize" / stage.SUMMARY)
    on_target = [point["write_on_target"] for point in summary["points"]]
    assert min(on_target[:2]) >= 0.9 and 0.35 <= on_target[2] <= 0.8 and max(on_target[4:]) <= 0.4
    assert on_target == sorted(on_target, reverse=True)
    assert (summary["site"], summary["section"]) == ("language.0.resid_post", "frontal")
    assert min(point["read_auroc"] for point in summary["points"]) > 0.98, "it is read everywhere"
    assert len(list(load_studies(config.studies))) > 600

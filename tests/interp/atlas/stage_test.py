"""When the atlas is made, and made again."""

import shutil

import pytest

from interp.atlas import stage
from interp.medsae import stage as label
from maira_jax.errors import UserError
from tests.helpers.atlas_page import Page, data_of, page_of
from tests.helpers.interp_run import config


def test_atlas_needs_the_interpretation(tmp_path):
    with pytest.raises(UserError, match="no finished stage wrote"):
        stage.run(config(), tmp_path)


def test_an_atlas_is_made_again_when_another_stage_has_run(run_dir, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(run_dir, workdir, ignore=shutil.ignore_patterns("atlas"))
    assert data_of(Page(page_of(workdir)[0]))["label"] is None
    cfg = config()
    cfg.label.sections = ("findings",)
    label.run(cfg, workdir)
    data = data_of(Page(page_of(workdir)[0]))
    assert data["run"]["stages"]["label"] and len(data["label"]["monosemanticity"]) == 12
    correlation = data["label"]["correlation"][4]
    assert max(correlation, key=lambda label: correlation[label] or 0) == "communication"

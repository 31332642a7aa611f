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


def test_a_sweep_that_is_not_there_is_refused_and_the_page_stays(run_dir, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(run_dir, workdir)
    page = workdir / "atlas" / "index.html"
    page_of(workdir)
    before = page.read_bytes()
    (workdir / "steer" / "pair").mkdir(parents=True)
    shutil.copy(workdir / "interp" / "manifest.json", workdir / "steer" / "pair")
    cfg = config()
    cfg.steer.name = "par"
    with pytest.raises(UserError, match="no finished sweep 'par': choose from .*pair with --sweep"):
        stage.run(cfg, workdir)
    assert page.read_bytes() == before

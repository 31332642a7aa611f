"""The small runs that the tests of this folder make atlases of."""

import shutil
import types

import pytest

from interp import stage
from interp.medsae import similar_stage
from interp.medsae import stage as label
from tests.helpers.atlas_page import add_hostile_texts, add_localize, add_set, add_steering, atlas_config, atlas_of
from tests.helpers.interp_run import make_workdir


@pytest.fixture(scope="package")
def run_dir(tmp_path_factory):
    workdir = make_workdir(tmp_path_factory.mktemp("atlas"), 160)
    stage.run(atlas_config(), workdir)
    return workdir


@pytest.fixture(scope="package")
def plain(run_dir, tmp_path_factory):
    """The atlas of a run that was only interpreted."""
    workdir = tmp_path_factory.mktemp("plain") / "run"
    shutil.copytree(run_dir, workdir)
    return types.SimpleNamespace(workdir=workdir, atlas=atlas_of(workdir))


@pytest.fixture(scope="package")
def full(run_dir, tmp_path_factory):
    """The atlas of a run with every stage, two sweeps, a second set of interpretations, and hostile texts."""
    workdir = tmp_path_factory.mktemp("full") / "run"
    shutil.copytree(run_dir, workdir)
    cfg = atlas_config()
    cfg.label.sections = ("findings",)
    cfg.similar.study_id = "phantom-0-000001"
    label.run(cfg, workdir)
    similar_stage.run(cfg, workdir)
    add_steering(workdir)
    add_steering(workdir, name="again")
    add_set(workdir)
    add_localize(workdir)
    add_hostile_texts(workdir)
    return types.SimpleNamespace(workdir=workdir, atlas=atlas_of(workdir, cfg))

"""The small runs that the tests of this folder make atlases of. All workers share them, so nobody changes them."""

import shutil
import types

import pytest

from interp import stage
from interp.medsae import similar_stage
from interp.medsae import stage as label
from tests.helpers.atlas_page import (
    Atlas,
    add_hostile_texts,
    add_localize,
    add_set,
    add_steering,
    atlas_config,
    atlas_of,
)
from tests.helpers.interp_run import make_workdir
from tests.helpers.shared import made_once


@pytest.fixture(scope="session")
def run_dir(tmp_path_factory):
    def make(folder):
        stage.run(atlas_config(), make_workdir(folder, 160))

    return made_once(tmp_path_factory, "atlas_interpreted", make)


@pytest.fixture(scope="session")
def plain(run_dir, tmp_path_factory):
    """The atlas of a run that was only interpreted."""

    def make(folder):
        atlas_of(shutil.copytree(run_dir, folder / "run"))

    workdir = made_once(tmp_path_factory, "atlas_plain", make) / "run"
    return types.SimpleNamespace(workdir=workdir, atlas=Atlas(workdir / "atlas"))


@pytest.fixture(scope="session")
def full(run_dir, tmp_path_factory):
    """The atlas of a run with every stage, two sweeps, a second set of interpretations, and hostile texts."""

    def make(folder):
        workdir = shutil.copytree(run_dir, folder / "run")
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
        atlas_of(workdir, cfg)

    workdir = made_once(tmp_path_factory, "atlas_full", make) / "run"
    return types.SimpleNamespace(workdir=workdir, atlas=Atlas(workdir / "atlas"))

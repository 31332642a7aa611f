"""When the atlas is made, made again, and left as it is."""

import shutil

import pytest
from matplotlib.figure import Figure

from interp.atlas import figures, stage
from maira_jax.errors import UserError
from tests.helpers.atlas_page import ATTACK, Atlas, add_steering, atlas_config, atlas_of


def files_of(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_atlas_needs_the_interpretation(tmp_path):
    with pytest.raises(UserError, match="no finished stage wrote"):
        stage.run(atlas_config(), tmp_path)


def test_an_atlas_stays_until_the_one_that_replaces_it_is_whole(plain, tmp_path, monkeypatch):
    workdir = tmp_path / "run"
    shutil.copytree(plain.workdir, workdir)
    before = files_of(workdir / "atlas")
    assert stage.run(atlas_config(), workdir)["features"] == 12  # which is there already
    assert files_of(workdir / "atlas") == before
    add_steering(workdir)

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(figures, "draw", interrupt)
        with pytest.raises(KeyboardInterrupt):
            stage.run(atlas_config(), workdir)
    assert files_of(workdir / "atlas") == before
    assert [sweep["name"] for sweep in atlas_of(workdir).head["sweeps"]] == ["concepts"]
    assert not list(workdir.glob(".*"))
    page = (workdir / "atlas" / "index.html").read_bytes()
    cfg = atlas_config()
    cfg.steer.name = "par"
    with pytest.raises(UserError, match="no finished sweep 'par': choose from concepts with --sweep"):
        stage.run(cfg, workdir)
    assert (workdir / "atlas" / "index.html").read_bytes() == page


def test_an_atlas_that_was_interrupted_in_a_figure_is_ended_by_the_same_command(full, tmp_path, monkeypatch):
    workdir = tmp_path / "run"
    shutil.copytree(full.workdir, workdir)
    before = files_of(workdir / "atlas" / figures.FOLDER)
    shutil.rmtree(workdir / "atlas")

    def interrupt(self, path, **_):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Figure, "savefig", interrupt)
        with pytest.raises(KeyboardInterrupt):
            stage.run(atlas_config(), workdir)
    assert b"half" in files_of(workdir / "atlas" / figures.FOLDER).values()
    stage.run(atlas_config(), workdir)
    assert files_of(workdir / "atlas" / figures.FOLDER) == before


def test_a_stage_that_ends_after_the_atlas_reaches_it(plain, full, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(plain.workdir, workdir)
    assert atlas_of(workdir).head["label"] is None
    shutil.copytree(full.workdir / "label", workdir / "label")
    assert atlas_of(workdir).head["label"]["sections"] == ["findings"]


def test_a_de_identified_atlas_names_no_study(full, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(full.workdir, workdir)
    assert "phantom-0-0000" in Atlas(workdir / "atlas").text()
    atlas = atlas_of(workdir, atlas_config(deidentify=True))
    assert "phantom-0-0000" not in atlas.text() and atlas.head["deidentified"]
    assert atlas.study("study 1")["name"] == "study 1" and atlas.details(4)["contexts"]


def test_an_atlas_without_studies_has_no_text_of_them(full, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(full.workdir, workdir)
    atlas = atlas_of(workdir, atlas_config(studies=False))
    text = atlas.text()
    assert "The heart is normal." not in text and "phantom-0-0000" not in text and atlas.details(4)["contexts"] == []
    assert not (workdir / "atlas" / "images").exists() and not list((workdir / "atlas" / "data").glob("study-*"))
    assert ATTACK in atlas.details(4)["explanation"] and atlas.details(4)["steering"]["concepts"]["rates"]

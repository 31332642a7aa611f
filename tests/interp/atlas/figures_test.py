"""Figures for a publication."""

from PIL import Image

from interp.atlas import figures
from interp.atlas.figures import FOLDER


def test_every_figure_is_there_as_svg_with_text_and_as_png(full):
    folder = full.workdir / "atlas" / FOLDER
    names = {path.stem for path in folder.iterdir()}
    assert names == {"detection", "controls", "density", "concepts", "steering-concepts", "steering-again"}
    for name in names:
        assert "<text" in (folder / f"{name}.svg").read_text()
        image = Image.open(folder / f"{name}.png")
        assert image.width >= 3.4 * 300 - 1 and len(image.convert("L").getcolors(256)) > 10
    assert "communication (n = " in (folder / "concepts.svg").read_text()


def test_without_matplotlib_the_command_that_brings_it_is_said(full, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(figures.importlib.util, "find_spec", lambda name: None)
    figures.draw(full.workdir, ["concepts"], tmp_path / "figures")
    assert "pip install -e '.[figures]'" in capsys.readouterr().err and not (tmp_path / "figures").exists()


def test_a_sweep_in_which_no_concept_could_be_steered_has_no_figure(full, tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "json_if_finished", lambda path: {"headline": {}, "rates": []})
    figures.draw(full.workdir, ["concepts"], tmp_path / "figures")
    assert (tmp_path / "figures/density.svg").is_file()
    assert not list((tmp_path / "figures").glob("steering-*"))

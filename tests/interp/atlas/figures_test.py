"""Figures for a publication."""

from PIL import Image

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

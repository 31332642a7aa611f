"""Features of images in the atlas: images, labels, heat maps, and what is missing or written into them."""

import shutil

import numpy as np
import pytest
from PIL import Image

from interp import stage
from interp.atlas import build
from interp.atlas.gathering import pictures
from maira_jax.errors import UserError
from maira_jax.inputs.regions import patch_boxes
from tests.helpers import image_run, rewritten
from tests.helpers.atlas_page import ATTACK, atlas_of, scripts
from tests.helpers.image_run import BRIGHT, BRIGHT_PATCH, DEAD, GRID, HEIGHT, WIDTH, config


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    workdir = image_run.make_workdir(tmp_path_factory.mktemp("images"), patches=True)
    stage.run(config(), workdir)
    return workdir


@pytest.fixture
def copied(run_dir, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(run_dir, workdir)
    return workdir


def test_a_feature_has_its_images_with_labels_and_heat_maps(copied):
    atlas = atlas_of(copied, config())
    assert atlas.head["run"]["encoder"] == {"name": "toy", "weights": "random 0", "rows": "patches", "grid": list(GRID)}
    assert atlas.head["run"]["sae"]["k"] is None  # ReLU selects no number of features
    contexts = atlas.details(BRIGHT)["contexts"]
    kinds = [atlas.head["kinds"][context[0]] for context in contexts]
    assert (kinds.count("top"), kinds.count("decile"), kinds.count("random")) == (10, 10, 6)
    studies = {study.study_id: study for study in image_run.BrightImagesSection(source="bright_images").load()}
    largest = atlas.chunk("list")["max_activation"][BRIGHT]
    for kind, (_, _, _, study, activation, tokens, heat, picture) in zip(kinds, contexts, strict=True):
        assert tokens == [] and studies[study].labels["bright"] == (kind != "random")
        np.testing.assert_allclose(picture[1], patch_boxes(WIDTH, HEIGHT, GRID, "pad")[0], rtol=1e-4)
        image = Image.open(copied / "atlas" / "images" / f"{picture[0]:05d}.jpg")
        assert image.size == (WIDTH, HEIGHT) and not image.getexif()
        assert abs(np.asarray(image).mean() - studies[study].frontal.mean()) < 12
        assert heat == ([] if kind == "random" else [BRIGHT_PATCH, int(np.ceil(100 * activation / largest - 1e-2))])
        labels = atlas.chunk("labels")
        present = [labels["names"][n] for n in labels["present"][study]]  # also of studies without a page
        assert present == [name for name, value in studies[study].labels.items() if value]
    assert atlas.details(DEAD)["contexts"] == []
    study = atlas.study(contexts[0][3])
    ((_, first, cell),) = study["images"]
    assert first == 0 and cell == contexts[0][7][1]
    (bright,) = [pairs for feature, _, *pairs in study["features"] if feature == BRIGHT]
    assert bright == contexts[0][6]
    assert study["labels"] == [name for name, value in studies[study["name"]].labels.items() if value]


def test_the_number_of_images_is_bounded_and_the_best_features_come_first(copied, monkeypatch):
    for module in (pictures, build):
        monkeypatch.setattr(module, "MAX_PICTURES", 5)
    atlas = atlas_of(copied, config())
    assert len(list((copied / "atlas" / "images").iterdir())) == 5
    best = atlas.details(atlas.head["concepts"][0]["feature"])["contexts"]
    assert [context[7] is not None for context in best[:3]] == [True, True, True]
    assert any(context[7] is None for context in best)


def test_what_is_written_in_labels_and_names_stays_text(copied):
    header = copied / "activations" / "store.json"
    header.write_text(header.read_text().replace('"toy"', '"</script><img src=x>"'))
    rewritten.accept(header.parent)
    page = atlas_of(copied, config()).page
    assert len(scripts(page)) == 2 and not [tag for tag, _ in page.elements if tag == "img"]
    assert ATTACK not in page.scripts[-1]


def test_images_that_are_not_at_hand(copied):
    """Of an encoder they must be; of somebody's arrays the page says why there are none."""
    cfg = config()
    cfg.studies.n = 3
    with pytest.raises(UserError, match=r"study image-3 of .* is not among config.studies"):
        atlas_of(copied, cfg)
    header = copied / "activations" / "store.json"
    header.write_text(header.read_text().replace('"encoder"', '"arrays"'))
    rewritten.accept(header.parent)
    atlas = atlas_of(copied, cfg)
    assert "is not among config.studies" in atlas.head["no_pictures"]
    assert not (copied / "atlas" / "images").exists() and atlas.head["run"]["encoder"]["name"] == "arrays"

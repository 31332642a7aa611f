"""Features of images in the atlas: images, labels, heat maps, and what is missing or written into them."""

import base64
import io
import shutil

import numpy as np
import pytest
from PIL import Image

from interp import stage
from interp.atlas import image_data, page
from interp.atlas import stage as atlas
from interp.atlas.data import gather
from interp.medsae import similar_stage
from interp.medsae.similar import StudyCodes, nearest, shared_features
from maira_jax.errors import UserError
from maira_jax.inputs.regions import patch_boxes
from tests.helpers import image_run
from tests.helpers.atlas_page import ATTACK, Page, data_of, scripts
from tests.helpers.image_run import BRIGHT, BRIGHT_PATCH, DEAD, GRID, HEIGHT, WIDTH, config


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    workdir = image_run.make_workdir(tmp_path_factory.mktemp("images"), patches=True)
    stage.run(config(), workdir)
    return workdir


def test_a_feature_has_its_images_with_labels_and_heat_maps(run_dir):
    counts = atlas.run(config(), run_dir)
    assert counts["features"] == image_run.N_FEATURES
    data = data_of(Page((run_dir / "atlas" / "index.html").read_text()))
    assert data["run"]["encoder"] == {"name": "toy", "weights": "random 0", "rows": "patches", "grid": list(GRID)}
    rows = data["exemplars"]["contexts"][str(BRIGHT)]
    kinds = [row[0] for row in rows]
    assert (kinds.count("top"), kinds.count("decile"), kinds.count("random")) == (8, 10, 4)
    assert sorted(row[1] for row in rows if row[0] == "decile") == list(range(10))
    studies = {study.study_id: study for study in image_run.BrightImagesSection(source="bright_images").load()}
    largest = data["features"]["max_activation"][BRIGHT]
    for kind, _, study, activation, heat in rows:
        shown, labels = data["pictures"][study], studies[study].labels
        assert shown["labels"] == [name for name, value in labels.items() if value]
        assert labels["bright"] == (kind != "random")
        np.testing.assert_allclose(shown["cell"], patch_boxes(WIDTH, HEIGHT, GRID, "pad")[0], rtol=1e-4)
        jpeg = base64.b64decode(shown["src"].removeprefix("data:image/jpeg;base64,"))
        pixels = np.asarray(Image.open(io.BytesIO(jpeg)))
        assert pixels.shape == (HEIGHT, WIDTH) and abs(pixels.mean() - studies[study].frontal.mean()) < 12
        assert heat == ([] if kind == "random" else [BRIGHT_PATCH, int(np.ceil(100 * activation / largest - 1e-2))])
    assert str(DEAD) not in data["exemplars"]["contexts"]


def test_the_number_of_images_is_bounded_and_the_best_features_come_first(run_dir, monkeypatch):
    monkeypatch.setattr(image_data, "_MAX_PICTURES", 5)
    data = gather(config(), run_dir)
    assert len(data["pictures"]) == 5
    first = data["concepts"][0]["feature"]
    assert {row[2] for row in data["exemplars"]["contexts"][str(first)]} == set(data["pictures"])


def test_a_study_is_shown_with_those_like_it(run_dir, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(run_dir, workdir, ignore=shutil.ignore_patterns("atlas"))
    assert gather(config(), workdir)["similar"] is None
    cfg = config()
    cfg.similar.study_id = "image-0"
    similar_stage.run(cfg, workdir)
    data, codes = gather(config(), workdir), StudyCodes.read(workdir / "similar")
    for study, found in data["similar"].items():
        own = codes.row(study)
        if not codes.norm[own]:
            assert found == []
            continue
        rows, cosines = nearest(codes, own, 6)
        assert [other for other, _, _ in found] == codes.study_id[rows].tolist()
        np.testing.assert_allclose([cosine for _, cosine, _ in found], cosines, atol=1e-3)
        assert {other for other, _, _ in found} <= set(data["pictures"])
        for other, cosine, shared in found:
            assert shared[0][0] == shared_features(codes, own, codes.row(other))[0][0]
            assert sum(share for _, share in shared) == pytest.approx(cosine, abs=5e-3)


def test_what_is_written_in_labels_and_names_stays_text(run_dir):
    data = gather(config(), run_dir)
    study = next(iter(data["pictures"]))
    data["pictures"][study]["labels"] = [ATTACK]
    data["pictures"][ATTACK] = data["pictures"][study]
    data["features"]["name"][BRIGHT] = data["run"]["encoder"]["name"] = data["run"]["model"] = ATTACK
    shown = Page(page.render(data))
    assert len(scripts(shown)) == 2 and not [tag for tag, _ in shown.elements if tag == "img"]
    assert data_of(shown)["pictures"][study]["labels"] == [ATTACK]


def test_images_that_are_not_at_hand(run_dir, tmp_path):
    """Of an encoder they must be; of somebody's arrays the page says why there are none."""
    cfg = config()
    cfg.studies.n = 3
    with pytest.raises(UserError, match=r"study image-3 of .* is not among config.studies"):
        gather(cfg, run_dir)
    workdir = tmp_path / "run"
    shutil.copytree(run_dir, workdir)
    header = workdir / "activations" / "store.json"
    header.write_text(header.read_text().replace('"encoder"', '"arrays"'))
    data = gather(cfg, workdir)
    assert "is not among config.studies" in data["no_pictures"]
    assert {shown["src"] for shown in data["pictures"].values()} == {None} and data["run"]["encoder"][
        "name"
    ] == "arrays"

"""Images that cannot be read are found together, and refused or skipped."""

import json

import numpy as np
import pytest
from PIL import Image

from maira_jax.errors import UserError
from maira_jax.inputs import readable
from maira_jax.inputs.readable import load_readable


@pytest.fixture
def section(tmp_path):
    """Six studies; the frontal image of two and the lateral one of a third cannot be read."""
    rng, rows = np.random.default_rng(0), []
    for number in range(6):
        Image.fromarray(rng.integers(0, 255, (20, 20)).astype(np.uint8)).save(tmp_path / f"{number}.png")
        rows.append({"study_id": f"s{number}", "patient_id": "p", "frontal": f"{number}.png"})
    rows[5]["lateral"] = "4.png"
    for number in (1, 3):
        (tmp_path / f"{number}.png").write_bytes(b"no image")
    Image.fromarray(np.full((20, 20), 7, np.uint8)).save(tmp_path / "4.png")
    (tmp_path / "studies.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return {"source": "manifest", "path": str(tmp_path / "studies.jsonl"), "n": None}


@pytest.mark.parametrize("readers", [0, 2])
def test_all_are_named_before_anything_else(section, tmp_path, readers):
    with pytest.raises(UserError, match=r"image files cannot be read: .*1.png, .*3.png, .*4.png; .*images.json says"):
        load_readable(section, tmp_path, readers)
    found = json.loads((tmp_path / "images.json").read_text())["unreadable"]
    assert [entry["study_id"] for entry in found] == ["s1", "s3", "s4", "s5"]
    assert all(entry["image"].endswith(".png") and entry["image"] in entry["reason"] for entry in found)


def test_their_studies_can_be_skipped(section, tmp_path, caplog):
    studies = load_readable(section | {"on_error": "skip"}, tmp_path, 0)
    assert [study.study_id for study in studies] == ["s0", "s2"]
    (warning,) = caplog.messages
    assert warning == f"studies with an image that cannot be read are left out: 4 of 6; {tmp_path}/images.json says why"


def test_images_that_have_not_changed_are_not_read_again(section, tmp_path, monkeypatch):
    skipping, asked = section | {"on_error": "skip"}, []
    load_readable(skipping, tmp_path, 0)
    look = readable._unreadable
    monkeypatch.setattr(readable, "_unreadable", lambda paths, readers: asked.extend(paths) or look(paths, readers))
    assert len(load_readable(skipping, tmp_path, 0)) == 2 and not asked
    Image.fromarray(np.arange(400, dtype=np.uint8).reshape(20, 20)).save(tmp_path / "1.png")
    lines = (tmp_path / "studies.jsonl").read_text().splitlines()
    (tmp_path / "studies.jsonl").write_text("\n".join(lines[1:]))  # nothing to read
    assert len(load_readable(skipping, tmp_path, 0)) == 2 and asked == [str(tmp_path / "1.png")]

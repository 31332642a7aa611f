"""The model that ships places findings where its world has them, and a finding that is steered in gets a box."""

import numpy as np

import maira_jax
from maira_jax.checkpoint.convert import PHANTOM, checkpoint_dir
from maira_jax.generation import grounding
from maira_jax.phantom.accuracy import checkpoint_writer
from maira_jax.phantom.grounding_accuracy import grounding_accuracy
from maira_jax.studies.readers import phantom

_SITE = "language.embed"


def test_boxes_are_where_findings_are_seen():
    """RadFact asks for half of a box inside the true one; the IoU was 0.67 on 500 other studies."""
    studies = phantom.studies(0, 40, seed=11)
    found, records = grounding_accuracy(checkpoint_writer(checkpoint_dir(PHANTOM), 200), studies)
    assert found.n_phrases > 80 and found.phrase_iou > 0.6
    assert all(value > 0.75 for value in found.scores.values())
    assert not any(grounding.parse(record["grounded"]).unparsed for record in records)


def _effusion_boxes(report):
    """The boxes of left pleural effusions."""
    named = [one for one in report.phrases if "effusion" in one.text.lower() and "left" in one.text.lower()]
    return [box for one in named for box in one.boxes or ()]


def test_a_finding_that_is_steered_in_gets_a_box_at_its_place():
    """The difference of means of the frontal image's tokens, added where the image enters the language model."""
    model = maira_jax.open_checkpoint(checkpoint_dir(PHANTOM))
    studies = phantom.studies(0, 80, seed=12)
    has = np.array([study.labels["left pleural effusion"] for study in studies])
    read = [model.read(study, _SITE) for study in studies]
    frontal = [np.array([image == 0 for image in one.tokens["image"].to_pylist()]) for one in read]
    means = np.stack([one.array[rows].mean(0) for one, rows in zip(read, frontal, strict=True)])  # [studies, d]
    direction = means[has].mean(0) - means[~has].mean(0)
    without = [study for study, present in zip(studies, has, strict=True) if not present][:10]
    found = [model.steer(study, direction, 2.0, at="frontal", site=_SITE, grounded=True) for study in without]
    boxes = [_effusion_boxes(one.after) for one in found]
    assert not any(_effusion_boxes(one.before) for one in found)
    assert sum(bool(each) for each in boxes) >= 8
    # The patient's left is at the right of the image, and fluid lies at its bottom.
    assert all(box.x_min > 0.5 and box.y_max > 0.6 for each in boxes for box in each)

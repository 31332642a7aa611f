"""Whole phantom studies: reproducible, labelled, and in step with the fast path."""

import hashlib

import numpy as np
import pytest

from maira_jax.phantom.world.latents import FINDINGS
from maira_jax.studies.readers import phantom

# Of the reports of studies 0 to 199 of seed 0. A checkpoint that was trained on the phantom is only as good as the
# phantom stays the same: whoever changes it on purpose trains the checkpoint again and then changes this.
_REPORTS = "87a7ab08e4017c63c7479ed1e12bf09de9d100cf8be6bcf57aa7431c96a6e968"


def test_studies_do_not_depend_on_their_range() -> None:
    whole, part = phantom.studies(0, 40, seed=5), phantom.studies(17, 20, seed=5)
    for one, other in zip(whole[17:20], part, strict=True):
        assert one.findings == other.findings and one.truth == other.truth and one.labels == other.labels
        assert (one.study_id, one.indication, one.prior_report) == (
            other.study_id,
            other.indication,
            other.prior_report,
        )
        assert np.array_equal(np.asarray(one.frontal), np.asarray(other.frontal))
        assert (one.prior_frontal is None) == (other.prior_frontal is None)


def test_the_world_has_not_changed() -> None:
    text = "\n".join(study.findings or "" for study in phantom.studies(0, 200, size=28))
    assert hashlib.sha256(text.encode()).hexdigest() == _REPORTS
    # Images to a tenth of a grey level of 255: the last bit may differ between processors.
    images = phantom.arrays(0, 64).images.astype(float)
    assert images.mean() == pytest.approx(101.23, abs=0.1)
    assert images.std() == pytest.approx(56.48, abs=0.1)


def test_arrays_are_the_images_and_levels_of_the_studies() -> None:
    studies, arrays = phantom.studies(7, 57, seed=1), phantom.arrays(7, 57, seed=1)
    for i, study in enumerate(studies):
        assert np.array_equal(np.asarray(study.frontal), arrays.images[i])
        assert arrays.has_prior[i] == (study.prior_frontal is not None)
        if study.prior_frontal is not None:
            assert np.array_equal(np.asarray(study.prior_frontal), arrays.prior_images[i])
        for name in ("cardiomegaly", "left pleural effusion", "right upper consolidation", "pacemaker"):
            assert study.labels[name] == bool(arrays.truth[name][i])


def test_labels_follow_the_truth() -> None:
    studies = phantom.studies(0, 800, size=28)
    assert len(studies[0].labels) >= 30
    for study in studies:
        present = [fact for fact in study.truth or () if fact.status == "present"]
        labels = study.labels
        assert labels.keys() == studies[0].labels.keys()
        for name in FINDINGS:
            assert labels[name] == any(fact.name == name for fact in present)
        assert labels["large left pleural effusion"] == any(
            (fact.name, fact.side, fact.size) == ("pleural effusion", "left", "large") for fact in present
        )
        assert labels["severe cardiomegaly"] == any((f.name, f.size) == ("cardiomegaly", "large") for f in present)
        assert labels["endotracheal tube malpositioned"] == any(
            (fact.name, fact.tip) == ("endotracheal tube", "malpositioned") for fact in present
        )
        assert labels["right consolidation"] == any((f.name, f.side) == ("consolidation", "right") for f in present)
        assert labels["bilateral pleural effusions"] == (
            labels["left pleural effusion"] and labels["right pleural effusion"]
        )
        assert labels["new finding"] == any(fact.change == "new" for fact in present)
        assert labels["normal study"] == (not present)
    for name in studies[0].labels:
        count = sum(study.labels[name] for study in studies)
        assert 0.02 * len(studies) < count < 0.6 * len(studies), name

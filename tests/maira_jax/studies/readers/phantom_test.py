"""Whole studies of the phantom: reproducible, and consistent with their arrays."""

import hashlib

import numpy as np
import pytest

from maira_jax.reports.labeller import extract
from maira_jax.studies.readers import phantom

# Digest of the reports of studies 0 to 199 of seed 0. The shipped checkpoint fits only the phantom that it was trained
# on: after a change of the phantom, train the checkpoint again, then change this.
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


def test_studies_are_those_that_the_model_was_trained_on() -> None:
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


def test_each_box_belongs_to_the_sentence_that_states_its_finding() -> None:
    n_bilateral = 0
    for study in phantom.studies(0, 200, seed=3, size=28):
        assert " ".join(sentence.text for sentence in study.grounded_findings) == study.findings
        located = [box for sentence in study.grounded_findings for box in sentence.boxes]
        assert sorted(located, key=repr) == sorted(study.boxes, key=repr)
        for sentence in study.grounded_findings:
            for finding in extract(sentence.text):
                expected = {"oedema": 2}.get(finding.name, 1) if finding.status == "present" else 0
                assert len([box for box in sentence.boxes if box.name == finding.name]) >= expected
                for box in sentence.boxes:
                    assert box.name != finding.name or finding.status == "present"
            if "bilateral pleural" in sentence.text:
                n_bilateral += 1
                left, right = sentence.boxes
                assert left.x > right.x
    assert n_bilateral

"""Sources of studies: what is held out, and in which order the rest is passed over."""

import numpy as np

from maira_jax.phantom.pretraining.study_source import FiniteStudySource, PhantomStudySource
from maira_jax.studies.readers import phantom


def test_held_out_phantom_studies_are_never_trained_on():
    source = PhantomStudySource(0, 56, 4)
    assert [study.study_id for study in source.held_out] == [
        study.study_id for study in phantom.studies(1 << 20, (1 << 20) + 4, 0, 56)
    ]


def test_a_finite_source_separates_patients_and_passes_over_all_studies():
    studies = phantom.studies(0, 40, seed=3, size=28)
    source = FiniteStudySource(studies, seed=0, size=28, held_out_fraction=0.3)
    held_out = {study.patient_id for study in source.held_out}
    assert 0 < len(source.held_out) < 40 and len(source.held_out) + len(source.train) == 40
    n = len(source.train)
    for epoch in range(2):
        seen = source.studies(epoch * n, (epoch + 1) * n)
        assert {study.study_id for study in seen} == {study.study_id for study in source.train}
        assert not held_out & {study.patient_id for study in seen}
        order = np.random.default_rng((0, epoch)).permutation(n)
        assert [study.study_id for study in seen] == [source.train[i].study_id for i in order]
    across = source.studies(n - 2, n + 2)
    assert across == source.studies(n - 2, n) + source.studies(n, n + 2)
    images, labels, known = source.images(0, 5)
    assert images.shape == (5, 28, 28) and labels.shape == known.shape == (5, len(source.labels)) and known.all()

"""Groups of patients: no patient is divided, and resamples draw whole groups."""

import numpy as np

from interp.medsae import patient_groups
from interp.medsae.patient_groups import PatientGroups


def test_no_patient_is_divided_and_few_are_groups_of_their_own(monkeypatch):
    patients = [f"p{i}" for i in np.random.default_rng(0).integers(0, 40, 200)]
    alone = PatientGroups.of(patients, 100, 0)
    assert alone.n == len(set(patients))
    monkeypatch.setattr(patient_groups, "MAX_GROUPS", 7)
    dealt = PatientGroups.of(patients, 100, 0)
    for groups in (alone, dealt):
        assert set(groups.of_study.tolist()) == set(range(groups.n))
        of_patient = {}
        for patient, group in zip(patients, groups.of_study.tolist(), strict=True):
            assert of_patient.setdefault(patient, group) == group
        assert (groups.weights.sum(1) == groups.n).all()
    assert dealt.n == 7


def test_sums_and_order_are_those_of_each_group():
    groups = PatientGroups.of(["b", "a", "c", "a", "b", "a"], 3, 1)
    values = np.arange(12.0).reshape(6, 2)
    for g in range(3):
        np.testing.assert_array_equal(groups.sums(values)[g], values[groups.of_study == g].sum(0))
    order, starts = groups.order()
    assert (np.diff(groups.of_study[order]) >= 0).all() and groups.of_study[order][starts].tolist() == [0, 1, 2]


def test_folds_leave_each_group_out_once_and_splits_are_random():
    groups = PatientGroups.of([str(i) for i in range(50)], 2, 0)
    assert ((~groups.folds(5)).sum(0) == 1).all()
    splits = groups.random_splits(3, 0.7, 0)
    assert splits.sum(1).tolist() == [35] * 3 and (splits[0] != splits[1]).any()

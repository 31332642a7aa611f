"""The split by patient."""

from maira_jax.studies.splits import split_of


def test_split_by_patient() -> None:
    patients = [f"p{i}" for i in range(4000)]
    held_out = [patient for patient in patients if split_of(patient, 0.2) == "held_out"]
    assert abs(len(held_out) / len(patients) - 0.2) < 0.03
    assert set(held_out) <= {patient for patient in patients if split_of(patient, 0.3) == "held_out"}
    assert {split_of(patient, 0.0) for patient in patients} == {"train"}
    assert {split_of(patient, 1.0) for patient in patients} == {"held_out"}
    assert held_out != [patient for patient in patients if split_of(patient, 0.2, seed=1) == "held_out"]
    # The same on every machine and for ever: stored activations carry it.
    assert [split_of(f"p{i}", 0.5) for i in range(6)] == ["train", "train", "held_out", "train", "held_out", "held_out"]

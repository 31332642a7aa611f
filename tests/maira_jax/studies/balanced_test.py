"""The balanced subset, against its rule."""

import random

import pytest

from maira_jax.errors import UserError
from maira_jax.studies.balanced import CLASSES, balanced_subset
from maira_jax.studies.readers import load_studies
from maira_jax.studies.study import Study


def _studies(*labels: str) -> list[Study]:
    """A study per text, which names its positive classes by their first words."""
    return [
        Study(f"s{i}", f"p{i}", None, labels={name: name.split()[0] in text.split() for name in CLASSES})
        for i, text in enumerate(labels)
    ]


def _positives(studies: list[Study]) -> list[list[str]]:
    return sorted([name for name, value in study.labels.items() if value] for study in studies)


def test_takes_exclusive_positives_first() -> None:
    studies = _studies(*["no"] * 5, *["pneumonia oedema"] * 4, *["pneumonia"] * 2, *["oedema"] * 3, "lung", "", "")
    chosen = balanced_subset(studies, 3)
    assert _positives(chosen) == sorted(
        [["no finding"]] * 3 + [["oedema"]] * 3 + [["pneumonia"]] * 2 + [["oedema", "pneumonia"]] + [["lung lesion"]]
    )


def test_a_study_counts_for_one_class_and_the_rarest_chooses_first() -> None:
    studies = _studies("lung pneumothorax", "pneumothorax pleural", "pleural", "pleural")
    assert len(balanced_subset(studies, 1)) == 3
    assert studies[0] in balanced_subset(studies, 1)  # the only one with a lung lesion
    assert len(balanced_subset(studies, 2)) == 4


def test_depends_on_the_studies_alone_and_keeps_their_order() -> None:
    rng = random.Random(0)
    studies = _studies(*(" ".join(rng.sample([c.split()[0] for c in CLASSES], rng.randint(0, 3))) for _ in range(200)))
    chosen = balanced_subset(studies, 7)
    assert chosen == [study for study in studies if study in chosen] != studies[: len(chosen)]
    assert 8 * 6 < len(chosen) <= 8 * 7
    shuffled = rng.sample(studies, len(studies))
    assert {study.study_id for study in balanced_subset(shuffled, 7)} == {study.study_id for study in chosen}


def test_of_what_a_reader_reads(tmp_path) -> None:
    section = {"source": "phantom", "n": 40, "seed": 3, "size": 8}
    chosen = load_studies(section | {"balanced": 2})
    assert [study.study_id for study in chosen] == [s.study_id for s in balanced_subset(load_studies(section), 2)]
    (tmp_path / "s.jsonl").write_text('{"study_id": "1", "patient_id": "p", "findings": "x"}\n')
    with pytest.raises(UserError, match="studies.balanced is 2, but no study is labelled with no finding, card"):
        load_studies({"source": "manifest", "path": str(tmp_path / "s.jsonl"), "balanced": 2})

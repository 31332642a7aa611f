"""A subset in which each of MedSAE's classes has at most the same number of positive studies.

MedSAE (arXiv 2510.26411) evaluates on such a subset of CheXpert and does not publish its list; the rule here is this
project's.
"""

import hashlib
from collections.abc import Sequence

from maira_jax.errors import UserError
from maira_jax.studies.study import Study

CLASSES = (
    "no finding",
    "cardiomegaly",
    "lung lesion",
    "oedema",
    "pneumonia",
    "pneumothorax",
    "pleural effusion",
    "support devices",
)
"""The classes that MedSAE measures neurons against, as concepts of `Study.labels`."""


def balanced_subset(studies: Sequence[Study], per_class: int) -> list[Study]:
    """Chooses at most `per_class` studies for each class, each study for one class, and keeps their order.

    The class with the fewest positive studies chooses first. It takes those of its positives that are not chosen yet:
    first those with no other class positive, then those with one, and so on; among equals by a hash of their ids, which
    favours neither the beginning of a table nor a patient. A study that is chosen for one class may be positive for
    others too, where too few are positive for one alone. The same studies in any order give the same subset.

    Raises:
      UserError: no study is positive for any of the classes.
    """
    positive = {name: [study for study in studies if study.labels.get(name)] for name in CLASSES}
    if not any(positive.values()):
        raise UserError(
            f"studies.balanced is {per_class}, but no study is labelled with {', '.join(CLASSES)}: leave it out"
        )
    chosen: set[str] = set()
    for name in sorted(CLASSES, key=lambda name: len(positive[name])):
        left = [study for study in positive[name] if study.study_id not in chosen]
        chosen.update(study.study_id for study in sorted(left, key=_preference)[:per_class])
    return [study for study in studies if study.study_id in chosen]


def _preference(study: Study) -> tuple[int, bytes]:
    return sum(study.labels.get(name, False) for name in CLASSES), hashlib.sha256(study.study_id.encode()).digest()

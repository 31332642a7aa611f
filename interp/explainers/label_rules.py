"""Rules that say by which labels images are distinguished: written as a sentence, read back, found by search.

A rule is a conjunction: images with "edema" and without "support devices". A label that is not known counts as absent.
"""

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from typing import Self

import numpy as np

_NOTHING = "no label sets its images apart"
_MAX_TERMS = 3
_MIN_GAIN = 0.05  # of balanced accuracy times two, for a further label
_TERM = re.compile(r'(with|without) ("(?:[^"\\]|\\.)*")')


@dataclasses.dataclass(frozen=True)
class LabelRule:
    """All of the labels `present`, and none of those `absent`; a rule without labels holds for no image."""

    present: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()

    def __str__(self) -> str:
        terms = [f"with {json.dumps(name)}" for name in self.present]
        terms += [f"without {json.dumps(name)}" for name in self.absent]
        return f"images {' and '.join(terms)}" if terms else _NOTHING

    @property
    def name(self) -> str:
        """A short name."""
        return ", ".join([*self.present, *(f"no {name}" for name in self.absent)]) or "no rule"

    @classmethod
    def parse(cls, sentence: str) -> Self:
        """Reads a rule back from what `str` gave.

        Raises:
          ValueError: the sentence is no rule.
        """
        found = _TERM.findall(sentence)
        rule = cls(*(tuple(json.loads(name) for how, name in found if how == wanted) for wanted in ("with", "without")))
        if str(rule) != sentence:
            raise ValueError(f"not a rule: {sentence!r}")
        return rule

    def holds(self, labels: Mapping[str, bool]) -> bool:
        """Whether it holds for an image with these labels."""
        if not self.present and not self.absent:
            return False
        has_all = all(labels.get(name, False) for name in self.present)
        return has_all and not any(labels.get(name, False) for name in self.absent)


def search(active: Sequence[Mapping[str, bool]], inactive: Sequence[Mapping[str, bool]]) -> LabelRule:
    """The rule that best separates two sets of images, by their labels, found greedily.

    Each step adds the label, present or absent, that raises true positive rate minus false positive rate most, while
    that gains 0.05.
    """
    labels = [*active, *inactive]  # [n]
    names = sorted({name for image in labels for name in image})
    if not names:
        return LabelRule()
    has = np.array([[image.get(name, False) for name in names] for image in labels], bool)  # [n, C]
    holds = np.concatenate([has, ~has], axis=1)  # [n, 2 C]
    weight = np.repeat([1 / max(len(active), 1), -1 / max(len(inactive), 1)], [len(active), len(inactive)])  # [n]
    kept, value, chosen = np.ones(len(labels), bool), 0.0, list[int]()
    while len(chosen) < _MAX_TERMS:
        gains = (weight * kept) @ holds  # [2 C]
        best = int(gains.argmax())
        if gains[best] < value + _MIN_GAIN:
            break
        chosen.append(best)
        kept, value = kept & holds[:, best], float(gains[best])
    present, absent = ([names[i % len(names)] for i in chosen if i // len(names) == part] for part in (0, 1))
    return LabelRule(tuple(present), tuple(absent))

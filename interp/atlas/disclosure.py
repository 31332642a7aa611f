"""What the atlas tells of single studies."""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

MASK = "[…]"
_MONTH = r"(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*\.?"
# Dates, times of day, numbers of five digits or more (accession and record numbers, telephones), and names after Dr.
_IDENTIFYING = re.compile(
    r"\d{1,4}\s?[-/.]\s?\d{1,2}\s?[-/.]\s?\d{2,4}"
    rf"|\b{_MONTH}\s\d{{1,2}}(?:st|nd|rd|th)?\b(?:,?\s\d{{4}})?|\b\d{{1,2}}(?:st|nd|rd|th)?\s{_MONTH}(?:\s\d{{4}})?\b"
    rf"|\b{_MONTH}\s\d{{4}}\b"
    r"|\b\d{1,2}:\d{2}(?::\d{2})?(?:\s?[ap]\.?m\b\.?)?|\b\d{1,2}\s?[ap]\.?m\b\.?"
    r"|\d(?:[\s-]?\d){4,}"
    r"|\bdr\b\.?\s[a-z][\w'-]*",
    re.IGNORECASE,
)


@dataclasses.dataclass
class Disclosure:
    """Decides which names and words of studies reach the page.

    Attributes:
      deidentify: whether studies are numbered in the order of their appearance instead of named, and dates, times,
        long numbers and physicians' names are masked in every text.
      studies: whether anything of single studies is shown: their texts, images and steered reports.
    """

    deidentify: bool = False
    studies: bool = True
    _numbers: dict[str, int] = dataclasses.field(default_factory=dict)

    def study(self, study_id: str) -> str:
        """The name under which a study appears."""
        if not self.deidentify:
            return study_id
        return f"study {self._numbers.setdefault(study_id, len(self._numbers) + 1)}"

    def text(self, text: str) -> str:
        """A text as it is shown."""
        return _IDENTIFYING.sub(MASK, text) if self.deidentify else text

    def texts(self, value: Any) -> Any:
        """A JSON-like value with every text in it as it is shown; keys stay."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, dict):
            return {key: self.texts(item) for key, item in value.items()}
        return [self.texts(item) for item in value] if isinstance(value, list) else value

    def tokens(self, tokens: Sequence[str]) -> list[str]:
        """The tokens of a context as they are shown: as many, a masked run as `MASK` and empty ones."""
        shown = list(tokens)
        if not self.deidentify:
            return shown
        text, ends, length = "".join(tokens), [], 0
        for token in tokens:
            length += len(token)
            ends.append(length)
        for found in _IDENTIFYING.finditer(text):
            hit = [i for i, end in enumerate(ends) if end > found.start() and end - len(tokens[i]) < found.end()]
            for i in hit:
                shown[i] = ""
            shown[hit[0]] = f" {MASK}"
        return shown

"""Patterns made of lists of words, and texts from which their matches are taken out."""

import re
from collections.abc import Sequence


def any_of(words: Sequence[str]) -> re.Pattern[str]:
    """A pattern that matches any of `words` (regular expressions) as whole words."""
    return re.compile(r"\b(?:" + "|".join(words) + r")\b")


def blank(text: str, pattern: re.Pattern[str]) -> str:
    """`text` with every match replaced by underscores of the same number, so that positions stay."""
    return pattern.sub(lambda match: "_" * (match.end() - match.start()), text)

"""How the word lists become patterns."""

import re
from collections.abc import Sequence


def any_of(words: Sequence[str]) -> re.Pattern[str]:
    """A pattern that matches any of `words` (regular expressions) as whole words."""
    return re.compile(r"\b(?:" + "|".join(words) + r")\b")

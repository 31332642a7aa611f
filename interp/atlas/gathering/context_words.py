"""The index by which the page finds features by the words of their contexts."""

import re
from array import array
from collections.abc import Iterable, Sequence

from interp.atlas.chunks import ChunkWriter

_WORD = re.compile(r"[^\W_][\w'-]*")
_CHUNK = 40_000  # features of all words of a chunk together, about


class ContextWords:
    """Collects, for each word, the features in whose activating contexts it occurs."""

    def __init__(self) -> None:
        self._features: dict[str, array[int]] = {}

    def add(self, feature: int, contexts: Iterable[Sequence[str]]) -> None:
        """Takes in all contexts of a feature, each as its tokens; features come in ascending order."""
        for word in {word for tokens in contexts for word in _WORD.findall("".join(tokens).lower())}:
            self._features.setdefault(word, array("i")).append(feature)

    def write(self, chunks: ChunkWriter) -> list[str]:
        """Writes the chunks words-0, words-1, …, of neighbours in the alphabet: word -> steps from feature to feature.

        Returns:
          The first word of each chunk.
        """
        firsts, content, size = [], dict[str, list[int]](), 0
        for word in sorted(self._features):
            if not content:
                firsts.append(word)
            found = self._features[word]
            content[word] = [here - before for here, before in zip(found, (0, *found), strict=False)]
            size += len(found)
            if size >= _CHUNK:
                chunks.write(f"words-{len(firsts) - 1}", content)
                content, size = {}, 0
        if content:
            chunks.write(f"words-{len(firsts) - 1}", content)
        return firsts

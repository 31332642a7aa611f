"""What a judge is shown to explain a feature: exemplars with their sections, marked tokens and strengths."""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any

# Tokens above this share of an example's largest activation are marked (delphi's choice).
MARK_ABOVE = 0.3


@dataclasses.dataclass(frozen=True)
class Example:
    """A context as a judge sees it.

    Attributes:
      section: the part of the study that it comes from.
      tokens: their texts; a word boundary is a leading space.
      activations: each token's activation as a share of the largest one among the examples shown together.
    """

    section: str
    tokens: tuple[str, ...]
    activations: tuple[float, ...]

    @property
    def text(self) -> str:
        """One line: the section and the words, without any sign of the activations."""
        return shown_text(self.section, self.tokens)

    @property
    def strengths(self) -> tuple[int, ...]:
        """Whole numbers from 0 to 10, one a token; any activation is at least 1."""
        return tuple(math.ceil(10 * activation) for activation in self.activations)

    def marked(self) -> str:
        """`text` with runs of strongly activating tokens between << and >>."""
        limit = MARK_ABOVE * max(self.activations, default=0.0)
        pieces, open_run = [], False
        for token, activation in zip(self.tokens, self.activations, strict=True):
            strong = activation > limit
            if strong and not open_run:
                space = " " if token.startswith(" ") else ""
                pieces.append(f"{space}<<{token[len(space) :]}")
            else:
                pieces.append(f">>{token}" if open_run and not strong else token)
            open_run = strong
        return shown_text(self.section, (*pieces, ">>" if open_run else ""))


def shown_text(section: str, tokens: Iterable[str]) -> str:
    """The line that stands for a context in every prompt."""
    return f"{section}: {' '.join(''.join(tokens).split())}"


def split_shown(line: str) -> tuple[str, str]:
    """Section and words of a line made by `shown_text`."""
    section, _, words = line.partition(": ")
    return section, words


@dataclasses.dataclass(frozen=True)
class ExplainTask:
    """One feature to explain.

    Attributes:
      feature: its number.
      activating: contexts from every activation decile.
      others: contexts in which it is silent.
    """

    feature: int
    activating: tuple[Example, ...]
    others: tuple[Example, ...]


def assemble(feature: int, rows: Iterable[Mapping[str, Any]]) -> ExplainTask:
    """Builds a task from the exemplar rows of a feature; only rows of the train split are used.

    The strongest contexts are left out: they are for readers; explanations made from them are too narrow.
    """
    shown = [row for row in rows if row["split"] == "train" and row["kind"] != "top"]
    largest = max((row["max_activation"] for row in shown), default=0.0) or 1.0

    def examples(kind: str) -> tuple[Example, ...]:
        return tuple(
            Example(row["section"], tuple(row["tokens"]), tuple(min(a / largest, 1.0) for a in row["activations"]))
            for row in shown
            if row["kind"] == kind
        )

    return ExplainTask(feature, examples("decile"), examples("random"))

"""What an explainer is shown of a feature: exemplars with their sections, marked tokens and strengths."""

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from interp.exemplars.selection import shown_non_activating
from interp.exemplars.shown import MARK_ABOVE, ImageAt, image_at, marked, shown_text
from sae.activations.store import TRAIN

_N_TOP_TOKENS = 8


@dataclasses.dataclass(frozen=True)
class Example:
    """A context as an explainer sees it.

    Attributes:
      section: the part of the study that it comes from.
      tokens: the texts of its tokens; a word boundary is a leading space.
      activations: each token's activation as a share of the largest one among the examples shown together.
      image: which image it is a part of, for examples of the image section.
    """

    section: str
    tokens: tuple[str, ...]
    activations: tuple[float, ...]
    image: ImageAt | None = None

    @property
    def text(self) -> str:
        """One line: the section and the words, without any sign of the activations."""
        return shown_text(self.section, self.tokens)

    @property
    def strengths(self) -> tuple[int, ...]:
        """Whole numbers from 0 to 10, one per token; any activation is at least 1."""
        return tuple(math.ceil(10 * activation) for activation in self.activations)

    @property
    def strong(self) -> tuple[bool, ...]:
        """Which tokens are marked."""
        limit = MARK_ABOVE * max(self.activations, default=0.0)
        return tuple(activation > limit for activation in self.activations)

    def marked(self) -> str:
        """`text` with runs of strongly activating tokens between << and >>."""
        return marked(self.section, self.tokens, self.strong)


@dataclasses.dataclass(frozen=True)
class ExplainTask:
    """One feature to explain.

    Attributes:
      feature: number of the feature.
      activating: contexts from every activation decile.
      others: contexts in which it is not active, of every kind.
    """

    feature: int
    activating: tuple[Example, ...]
    others: tuple[Example, ...]


def explain_task(
    feature: int, rows: Sequence[Mapping[str, Any]], n_explain: int, min_contexts: int
) -> ExplainTask | str:
    """The task that explains a feature, or the reason why there is none; only contexts of the train split are shown.

    The strongest contexts are left out: they are for readers; explanations made from them are too narrow.

    Args:
      feature: number of the feature.
      rows: its exemplars (see `interp.exemplars.exemplar_table.SCHEMA`).
      n_explain: non-activating contexts that are shown, at most.
      min_contexts: activating and non-activating contexts that an explanation needs, each.
    """
    if not any(row["max_activation"] > 0 for row in rows):
        return "never active"
    shown = [row for row in rows if row["split"] == TRAIN and row["kind"] != "top"]
    largest = max((row["max_activation"] for row in shown), default=0.0) or 1.0

    def example(row: Mapping[str, Any]) -> Example:
        activations = tuple(min(a / largest, 1.0) for a in row["activations"])
        return Example(row["section"], tuple(row["tokens"]), activations, image_at(row))

    activating = tuple(example(row) for row in shown if row["kind"] == "decile")
    others = tuple(map(example, shown_non_activating(shown, n_explain)))
    if len(activating) < min_contexts:
        return f"active in fewer than {min_contexts} train contexts"
    if len(others) < min_contexts:
        return f"fewer than {min_contexts} of the sampled train contexts are non-activating"
    return ExplainTask(feature, activating, others)


def image_task(feature: int, rows: Sequence[Mapping[str, Any]], n_explain: int, min_contexts: int) -> ExplainTask | str:
    """The task that explains a feature of images, or the reason why there is none; only train images are shown.

    The strongest images are among those shown, as MedSAE shows them.

    Args:
      feature, rows, n_explain, min_contexts: as for `explain_task`.

    Returns:
      A task whose activating examples are in falling order of activation, each with one activation and no words.
    """
    if not any(row["kind"] == "top" for row in rows):
        return "never active"
    shown = [row for row in rows if row["split"] == TRAIN]
    largest = max((row["max_activation"] for row in shown), default=0.0) or 1.0
    by_group: dict[bool, dict[str, Example]] = {True: {}, False: {}}  # by study: an image may be of several kinds
    for row in sorted(shown, key=lambda row: -row["max_activation"]):
        example = Example(row["section"], (), (row["max_activation"] / largest,), image_at(row))
        by_group[row["kind"] in ("top", "decile")].setdefault(row["study_id"], example)
    activating, others = (tuple(by_group[group].values()) for group in (True, False))
    if sum(row["kind"] == "decile" for row in shown) < min_contexts:
        return f"active in fewer than {min_contexts} train images"
    if len(others) < min_contexts:
        return f"inactive in fewer than {min_contexts} train images"
    return ExplainTask(feature, activating, others[:n_explain])


def top_tokens(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """The peak tokens of a feature's train exemplars, by the sum of their activations; none for images."""
    weight: Counter[str] = Counter()
    for row in rows:
        if row["split"] == TRAIN and row["peak"] is not None and row["tokens"]:
            weight[row["tokens"][row["peak"]].strip()] += row["max_activation"]
    return [token for token, _ in sorted(weight.items(), key=lambda item: (-item[1], item[0]))[:_N_TOP_TOKENS]]

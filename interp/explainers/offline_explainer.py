"""An explainer without a language model: it searches for the rule that best separates a feature's contexts."""

import functools
import itertools
from collections.abc import Iterable, Iterator

from interp.explainers import explainer, rules
from interp.explainers.evidence import ExplainTask
from interp.explainers.explainer import EXPLAINERS, Explanation, OpenChatModel, ReadLabels

NAME = "offline judge (no language model)"
VERSIONS = ("offline-rules-3",)
PREFIX = "Offline judge: "  # of every explanation


@EXPLAINERS.register("offline")
class OfflineExplainer:
    """A deterministic baseline: the words, statements, sections and labels that best separate activating contexts.

    Of images it says, too, with which label it is strongest.
    """

    name, versions = NAME, VERSIONS

    def __init__(self, open_language_model: OpenChatModel | None = None, read_labels: ReadLabels = dict):
        self._labels = functools.cache(read_labels)

    def explain(self, tasks: Iterable[ExplainTask]) -> Iterator[Explanation | None]:
        for _, together in itertools.groupby(tasks, lambda task: task.feature // explainer.FEATURE_BATCH):
            for rule in rules.search(list(together), self._labels()):
                yield Explanation(rule.name, f"{PREFIX}{rule}.")

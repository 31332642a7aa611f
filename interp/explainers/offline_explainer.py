"""An explainer without a language model: it searches for the rule that best separates a feature's contexts."""

import itertools
from collections.abc import Iterable, Iterator

from interp.explainers import explainer, rules
from interp.explainers.evidence import ExplainTask
from interp.explainers.explainer import EXPLAINERS, Explanation, OpenChatModel

NAME = "offline judge (no language model)"
VERSIONS = ("offline-rules-1",)
PREFIX = "Offline judge: "  # of every explanation


@EXPLAINERS.register("offline")
class OfflineExplainer:
    """A deterministic baseline: the phrases and sections that best separate activating contexts from the others."""

    name, versions = NAME, VERSIONS

    def __init__(self, open_language_model: OpenChatModel | None = None):
        pass

    def explain(self, tasks: Iterable[ExplainTask]) -> Iterator[Explanation | None]:
        for _, together in itertools.groupby(tasks, lambda task: task.feature // explainer.FEATURE_BATCH):
            for rule in rules.search(list(together)):
                yield Explanation(rule.name, f"{PREFIX}{rule}.")

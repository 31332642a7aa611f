"""What an explainer is: it says in words what makes a feature active, from contexts in which it is active and others.

    @EXPLAINERS.register("mine")
    class MyExplainer:
        name, versions = "my explainer", ("mine-1",)

        def __init__(self, open_language_model: OpenChatModel, read_labels: ReadLabels):
            ...

        def explain(self, tasks: Iterable[ExplainTask]) -> Iterator[Explanation | None]:
            ...

A configuration file may import such a file; `interpret.explainer` names the explainer.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Protocol, TypeAlias

from interp.explainers.chat_model import ChatModel
from interp.explainers.evidence import ExplainTask
from maira_jax.run.registry import Registry

# Features that are explained together and whose results are saved together: the offline search breaks some ties by what
# it searches at a time, so that a resumed run has to search the same features together.
FEATURE_BATCH = 256

OpenChatModel: TypeAlias = Callable[[], ChatModel]
ReadLabels: TypeAlias = Callable[[], Mapping[str, Mapping[str, bool]]]
"""Gives each study's labels by study id.

To be called when they are needed: an explainer is made before the stage's inputs are there.
"""


@dataclasses.dataclass(frozen=True)
class Explanation:
    """What makes a feature active.

    Attributes:
      name: a few words.
      text: the explanation; scoring sees nothing else.
      cost: what it cost in US dollars.
    """

    name: str
    text: str
    cost: float = 0.0


class Explainer(Protocol):
    """Explains features.

    Attributes:
      name: who explains, for the record.
      versions: names of the prompts or rules that it works by.
    """

    @property
    def name(self) -> str: ...

    @property
    def versions(self) -> tuple[str, ...]: ...

    def explain(self, tasks: Iterable[ExplainTask]) -> Iterator[Explanation | None]:
        """An explanation for each task, in their order; None where none could be had.

        Args:
          tasks: one task for each feature, in the order of the features.

        Raises:
          UserError: the work cannot go on.
        """


EXPLAINERS: Registry[Callable[[OpenChatModel, ReadLabels], Explainer]] = Registry("interpret.explainer")

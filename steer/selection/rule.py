"""What a rule of selection is, what it is given, and the registry of all rules."""

import abc
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, NamedTuple, Protocol

import numpy as np

from maira_jax.errors import UserError
from maira_jax.inputs.image import ImageConfig
from maira_jax.inputs.tokens import Tokenizer
from maira_jax.model.config import Maira2Config
from maira_jax.model.layers import Params
from maira_jax.model.sites import Site
from maira_jax.run.registry import Registry
from maira_jax.studies.study import Study
from steer.selection.catalogue import FeatureCatalogue
from steer.selection.target import Target


class EditedModel(NamedTuple):
    """The model with the place where features are added.

    Attributes:
      params, cfg: the model.
      tokenizer, image_cfg: of its checkpoint.
      site: where features are added.
      edited: from the kinds of a study's tokens (of `Kind`) to which of them are edited, bool of the same shape.
    """

    params: Params
    cfg: Maira2Config
    tokenizer: Tokenizer
    image_cfg: ImageConfig
    site: Site
    edited: Callable[[np.ndarray], np.ndarray]


class AmplifiedTokens(NamedTuple):
    """What the model expects of the next token where n features are amplified, at t places of each study's report.

    Attributes:
      rank: int32 [studies, n, t], of a feature's own tokens the best rank, from 0; a feature of another tower than the
        language model has none.
      probability: float32 [studies, n, t], of its own tokens the largest probability.
      confidence: float32 [studies, n, t], the negative mean log-probability of the most likely tokens, in nats.
      unsteered: float32 [studies, t], the confidence where nothing is amplified.
      counted: bool [studies, t], the places that a study has.
    """

    rank: np.ndarray
    probability: np.ndarray
    confidence: np.ndarray
    unsteered: np.ndarray
    counted: np.ndarray


class SteeringEffects(Protocol):
    """Measures what adding features does on studies' own prompts with their images, as the sweep would add them."""

    def amplified(self, targets: Sequence[Target]) -> AmplifiedTokens:
        """What the model expects where each feature is added at the sweep's largest strength."""
        ...

    def rewards(self, targets: Sequence[Target]) -> np.ndarray:
        """Of a few steered reports the share on target minus the share off target, at the best strength; float64 [n].

        NaN for a target whose concept no report could change.
        """
        ...


@dataclasses.dataclass(frozen=True)
class SelectionInputs:
    """What rules score features by.

    Attributes:
      catalogue: what is known of the features.
      w_dec: the decoder, float32 [F, d_model].
      model: the model, and where it is edited.
      training: gives the studies that the autoencoder was trained on.
      n_studies: how many of them effects are measured on.
      effects: gives what measures effects on those.
    """

    catalogue: FeatureCatalogue
    w_dec: np.ndarray
    model: EditedModel
    training: Callable[[], Sequence[Study]]
    n_studies: int
    effects: Callable[[], SteeringEffects]

    @property
    def unknown(self) -> np.ndarray:
        """A score of every feature that says nothing, float64 [F]."""
        return np.full(len(self.w_dec), np.nan)


class SelectionRule(abc.ABC):
    """How the features that steer a concept are chosen.

    Attributes:
      proposes: whether it looks at all features; one that does not scores the candidates that others propose.
    """

    proposes: ClassVar[bool] = False

    @abc.abstractmethod
    def scores(self, candidates: Mapping[str, Sequence[int]], inputs: SelectionInputs) -> Mapping[str, np.ndarray]:
        """By concept a score of every feature, float64 [F], the largest ones best; NaN where it has none.

        Args:
          candidates: the features of each concept that others propose; empty for a rule that proposes.
          inputs: what it may use.
        """


SELECTIONS: Registry[type[SelectionRule]] = Registry("steer.select")


def refuse_outside_language(inputs: SelectionInputs, rule: str) -> None:
    """Refuses a rule that reads decoder rows as the language model does.

    Raises:
      UserError: features are added in another tower.
    """
    site = inputs.model.site
    if site.tower != "language":
        raise UserError(
            f"steer.select {rule!r} needs a site of the language model, not {site.name}: choose another rule"
        )


def per_feature(
    candidates: Mapping[str, Sequence[int]],
    inputs: SelectionInputs,
    score: Callable[[AmplifiedTokens], np.ndarray],
) -> dict[str, np.ndarray]:
    """A score of what amplified features do, which knows no concept, for the candidates of each concept."""
    numbers = sorted({number for found in candidates.values() for number in found})
    scores = inputs.unknown
    scores[numbers] = score(inputs.effects().amplified([inputs.catalogue.target(number) for number in numbers]))
    found = {}
    for concept, own in candidates.items():
        found[concept] = inputs.unknown
        found[concept][list(own)] = scores[list(own)]
    return found

"""What a steering method is, what it is given, and the registry of all methods."""

import abc
import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, Literal, Protocol, Self, TypeVar

import numpy as np

from maira_jax.run.registry import Registry
from sae.activations.store import ActivationStore
from sae.autoencoder import Sae
from steer.methods.intervention import Intervention
from steer.methods.learned.rewriting import Rewriting
from steer.methods.study_means import StudyMeans
from steer.selection.target import Target

StrengthUnit = Literal["max_activation", "residual_norm", "raw"]
TokenMask = Callable[[np.ndarray], np.ndarray]


class StoreStatistic(Protocol):
    """A measurement of the activation store that methods may ask for."""

    @classmethod
    def measure(cls, store: ActivationStore, measured: TokenMask, sae: Sae) -> Self:
        """Measures the training split of a store.

        Args:
          store: the activation store.
          measured: from the kinds of a study's tokens (of `Kind`) to which of them are measured, bool of the same
            shape: those that stand for the tokens that the sweep edits.
          sae: the autoencoder.
        """
        ...


Statistic = TypeVar("Statistic", bound=StoreStatistic)


@dataclasses.dataclass(frozen=True)
class MethodInputs:
    """What methods make interventions from.

    Attributes:
      sae: the autoencoder.
      unit: the unit of strength. max_activation: the largest activation of the target's feature; residual_norm: the
        mean norm of the residual stream on the edited tokens; raw: 1.
      seed: the seed of what a method draws at random.
      statistics: the measurements of the activation store, by their type.
      rewriting: what edits are learned from; None where there is no model.
    """

    sae: Sae
    unit: StrengthUnit
    seed: int
    statistics: Mapping[type, Any]
    rewriting: Rewriting | None = None

    @classmethod
    def measure(
        cls,
        sae: Sae,
        unit: StrengthUnit,
        seed: int,
        store: ActivationStore,
        measured: TokenMask,
        methods: Iterable[str],
        rewriting: Rewriting | None = None,
    ) -> Self:
        """Measures what `methods` and the unit need; see `StoreStatistic.measure`."""
        wanted = {kind for name in methods for kind in METHODS.get(name).statistics}
        if unit == "residual_norm":
            wanted.add(StudyMeans)
        return cls(sae, unit, seed, {kind: kind.measure(store, measured, sae) for kind in wanted}, rewriting)

    def statistic(self, kind: type[Statistic]) -> Statistic:
        """The measurement of this type, which the method names in its `statistics`."""
        found: Statistic = self.statistics[kind]
        return found

    def decoder_row(self, feature: int) -> np.ndarray:
        """A feature's decoder row, float32 [d_model]."""
        return np.asarray(self.sae.params["W_dec"][feature])

    def unit_size(self, max_activation: float) -> float:
        """The size of a strength of 1, for a target with this largest activation."""
        if self.unit == "residual_norm":
            return self.statistic(StudyMeans).residual_norm
        return max_activation if self.unit == "max_activation" else 1.0


class SteeringMethod(abc.ABC):
    """How a target is steered.

    Attributes:
      statistics: the types of the measurements that it needs.
      strengths: its fixed strengths; empty: those of `steer.strengths`. The sign says whether it steers towards
        the concept or away from it.
      of_concept: whether it knows the concept alone, so that all features of a concept share one direction.
      learned: whether it learns an edit through the model, which takes minutes; see `KeptEdits`.
    """

    statistics: ClassVar[tuple[type[StoreStatistic], ...]] = ()
    strengths: ClassVar[tuple[float, ...]] = ()
    of_concept: ClassVar[bool] = False
    learned: ClassVar[bool] = False

    @abc.abstractmethod
    def intervention(self, target: Target, inputs: MethodInputs) -> Intervention | None:
        """What it does for a target; None where it cannot steer this target."""


METHODS: Registry[type[SteeringMethod]] = Registry("steer.methods")

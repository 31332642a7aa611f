"""What an SAE and its training are made of, checked once at the boundary."""

import dataclasses
import math
from typing import Any, Literal, get_args

import ml_collections

from maira_jax.errors import UserError
from maira_jax.run import fields
from sae.training import presets
from sae.variants import VARIANTS

# Counts of kept entries are int32 on the device.
_LARGEST_MATRIX = 2**31 - 1

Dtype = Literal["float32", "bfloat16"]


@dataclasses.dataclass(frozen=True)
class SaeConfig:
    """A sparse autoencoder, nested (Matryoshka) where it has several groups.

    Attributes:
      d_model: width of the activations.
      n_features: number of features, over all groups.
      k: mean number of features kept a token; not used by "relu".
      group_sizes: features of each group, in feature order; they sum to `n_features`.
      group_weights: weight in the loss of the reconstruction that ends with each group.
      kind: name of its variant in `sae.variants`.
      l1: weight of the summed activations of a token in the loss.
    """

    d_model: int
    n_features: int
    k: int
    group_sizes: tuple[int, ...]
    group_weights: tuple[float, ...]
    kind: str = "batch_top_k"
    l1: float = 0.0

    def __post_init__(self) -> None:
        VARIANTS.get(self.kind)
        if not 0 < self.k <= self.n_features:
            raise UserError(
                f"sae.k is {self.k}, but must lie between 1 and the {self.n_features} features: change sae.k"
            )
        if not self.l1 >= 0:
            raise UserError(f"sae.l1 is {self.l1}, but must not be negative: change it")
        if min(self.group_sizes) < 1 or sum(self.group_sizes) != self.n_features:
            raise UserError(
                f"sae.group_fractions give groups of {self.group_sizes} features, which must be positive and sum "
                f"to {self.n_features}: change sae.group_fractions or sae.expansion"
            )
        if len(self.group_weights) != len(self.group_sizes):
            raise UserError(
                f"sae.group_weights has {len(self.group_weights)} entries for {len(self.group_sizes)} groups: "
                "give one weight a group, or none for those of train.preset"
            )

    @classmethod
    def from_section(cls, section: ml_collections.ConfigDict, d_model: int, preset: str) -> "SaeConfig":
        """Reads the `sae` section for activations of width `d_model`; `preset` gives the weights that it leaves open.

        Raises:
          UserError: a field is out of range.
        """
        fractions = tuple(map(float, fields.tuple_of(float, "sae.group_fractions", section.group_fractions)))
        if not fractions or not math.isclose(sum(fractions), 1.0) or min(fractions) <= 0:
            raise UserError(
                f"sae.group_fractions {fractions} must be positive and sum to 1: change sae.group_fractions"
            )
        if section.expansion <= 0:
            raise UserError(f"sae.expansion is {section.expansion}, but must be positive: change it")
        n_features = int(section.expansion * d_model)
        sizes = group_sizes(fractions, n_features)
        weights = tuple(map(float, fields.tuple_of(float, "sae.group_weights", section.group_weights)))
        return cls(
            d_model=d_model,
            n_features=n_features,
            k=int(section.k),
            group_sizes=sizes,
            group_weights=weights or presets.named(preset).group_weights(len(sizes)),
            kind=section.kind,
            l1=float(section.l1),
        )


def group_sizes(fractions: tuple[float, ...], n_features: int) -> tuple[int, ...]:
    """Rounds each group down and gives the remainder to the last."""
    sizes = [int(fraction * n_features) for fraction in fractions[:-1]]
    return (*sizes, n_features - sum(sizes))


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How an SAE is trained. Lengths are in steps, except where tokens are named.

    Attributes:
      steps: number of updates.
      batch_size: tokens an update.
      microbatches: parts in which a batch's gradients are computed, one after the other; the result is the same.
        One CPU handles the kept entries of the whole batch and makes no parts.
      dtype: of the factors of matrix products, which are summed in float32; everything else is float32.
      lr: peak learning rate.
      warmup_steps: length of the linear warmup from 0.
      decay_start: step from which the rate falls linearly to 0 at `steps`; `steps` for no decay.
      beta1: decay of Adam's mean.
      beta2: decay of Adam's mean square.
      auxk_alpha: weight of the auxiliary loss.
      dead_tokens: a feature silent for this many tokens is dead.
      resample_every: dead features are replaced by poorly described tokens after so many steps; 0 for never.
      threshold_beta: decay of the running threshold.
      threshold_start: the running threshold is followed after this step.
      normalize: divide activations by their root mean squared norm.
      calibration_tokens: at most so many held-out tokens set the final threshold.
      chunk_steps: updates in one call of the device.
      checkpoint_every: steps between checkpoints, a multiple of `chunk_steps`.
      evaluate_every: steps between evaluations on held-out tokens, a multiple of `chunk_steps`; 0 for none.
      mesh: devices along the data axis and along the feature axis.
      seed: of the initialisation and the data order.
    """

    steps: int
    batch_size: int
    lr: float
    warmup_steps: int
    decay_start: int
    auxk_alpha: float
    dead_tokens: int
    threshold_beta: float
    threshold_start: int
    normalize: bool
    calibration_tokens: int
    chunk_steps: int
    checkpoint_every: int
    mesh: tuple[int, int]
    seed: int
    microbatches: int = 1
    dtype: Dtype = "float32"
    beta1: float = 0.9
    beta2: float = 0.999
    resample_every: int = 0
    evaluate_every: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "lr", "dead_tokens", "calibration_tokens", "chunk_steps", "microbatches"):
            if not getattr(self, name) > 0:
                raise UserError(f"train.{name} is {getattr(self, name)}, but must be positive: change it")
        if self.dtype not in get_args(Dtype):
            raise UserError(f"train.dtype is {self.dtype!r}: choose one of {', '.join(get_args(Dtype))}")
        if not 0 <= self.warmup_steps < self.steps:
            raise UserError(
                f"train.warmup_steps is {self.warmup_steps}, but must lie below the {self.steps} steps: lower it"
            )
        if not self.warmup_steps < self.decay_start <= self.steps:
            raise UserError(
                f"train.decay_start is {self.decay_start}, but must lie between the warmup ({self.warmup_steps}) "
                f"and the end ({self.steps}): change it"
            )
        for name in ("beta1", "beta2", "threshold_beta"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"train.{name} is {getattr(self, name)}, but must be in [0, 1): change it")
        for name, least in (("checkpoint_every", 1), ("evaluate_every", 0)):
            value = getattr(self, name)
            if value < least or value % self.chunk_steps:
                raise UserError(
                    f"train.{name} is {value}, but must be a multiple of train.chunk_steps ({self.chunk_steps}): "
                    "change one of them"
                )
        if self.resample_every < 0:
            raise UserError(f"train.resample_every is {self.resample_every}: give a number of steps, or 0 for never")
        if len(self.mesh) != 2 or min(self.mesh) < 1:
            raise UserError(f"train.mesh is {self.mesh}, but must be two positive sizes (data, feature): change it")
        if self.batch_size % (self.mesh[0] * self.microbatches):
            raise UserError(
                f"train.batch_size {self.batch_size} must be a multiple of the data axis of train.mesh "
                f"({self.mesh[0]}) times train.microbatches ({self.microbatches}): change one of them"
            )

    @classmethod
    def from_section(cls, section: ml_collections.ConfigDict, sae: SaeConfig, seed: int) -> "TrainConfig":
        """Reads the `train` section for the autoencoder `sae`; fields that are None are those of its preset.

        Raises:
          UserError: a field is out of range or does not fit `sae`.
        """
        given = {field.name: section.get(field.name) for field in dataclasses.fields(cls)}
        values: dict[str, Any] = given | {"seed": int(seed)}
        values["mesh"] = fields.tuple_of(int, "train.mesh", section.mesh)
        preset = presets.named(section.preset)
        chosen = preset.train(values["steps"], values["batch_size"], sae.n_features)
        config = cls(**values | {name: value for name, value in chosen.items() if values[name] is None})
        if config.batch_size * sae.n_features > _LARGEST_MATRIX:
            raise UserError(
                f"train.batch_size {config.batch_size} times {sae.n_features} features exceeds 2^31: "
                "lower train.batch_size"
            )
        for size in sae.group_sizes:
            if size % config.mesh[1]:
                raise UserError(
                    f"a group of {size} features cannot be split over the feature axis of train.mesh "
                    f"({config.mesh[1]}): change train.mesh or sae.group_fractions"
                )
        return config

"""What an SAE and its training are made of, checked once at the boundary."""

import dataclasses
import math

import ml_collections

from maira_jax.errors import UserError

# Counts of kept entries are int32 on the device.
_LARGEST_MATRIX = 2**31 - 1


@dataclasses.dataclass(frozen=True)
class SaeConfig:
    """A Matryoshka BatchTopK autoencoder.

    Attributes:
      d_model: width of the activations.
      n_features: number of features, over all groups.
      k: mean number of features kept a token.
      group_sizes: features of each group, in feature order; they sum to `n_features`.
      group_weights: weight of the reconstruction that ends with each group.
    """

    d_model: int
    n_features: int
    k: int
    group_sizes: tuple[int, ...]
    group_weights: tuple[float, ...]

    def __post_init__(self) -> None:
        if not 0 < self.k <= self.n_features:
            raise UserError(
                f"sae.k is {self.k}, but must lie between 1 and the {self.n_features} features: change sae.k"
            )
        if min(self.group_sizes) < 1 or sum(self.group_sizes) != self.n_features:
            raise UserError(
                f"sae.group_fractions give groups of {self.group_sizes} features, which must be positive and sum "
                f"to {self.n_features}: change sae.group_fractions or sae.expansion"
            )
        if len(self.group_weights) != len(self.group_sizes):
            raise UserError(
                f"sae.group_weights has {len(self.group_weights)} entries for {len(self.group_sizes)} groups: "
                "give one weight a group, or none for equal weights"
            )

    @classmethod
    def from_section(cls, section: ml_collections.ConfigDict, d_model: int) -> "SaeConfig":
        """Reads the `sae` section for activations of width `d_model`.

        Raises:
          UserError: a field is out of range.
        """
        fractions = tuple(float(fraction) for fraction in section.group_fractions)
        if not fractions or not math.isclose(sum(fractions), 1.0) or min(fractions) <= 0:
            raise UserError(
                f"sae.group_fractions {fractions} must be positive and sum to 1: change sae.group_fractions"
            )
        if section.expansion <= 0:
            raise UserError(f"sae.expansion is {section.expansion}, but must be positive: change it")
        n_features = int(section.expansion * d_model)
        sizes = group_sizes(fractions, n_features)
        weights = tuple(float(weight) for weight in section.group_weights)
        return cls(
            d_model=d_model,
            n_features=n_features,
            k=int(section.k),
            group_sizes=sizes,
            group_weights=weights or (1.0 / len(sizes),) * len(sizes),
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
      lr: peak learning rate.
      warmup_steps: length of the linear warmup from 0.
      decay_start: step from which the rate falls linearly to 0 at `steps`; None for no decay.
      auxk_alpha: weight of the auxiliary loss.
      dead_tokens: a feature silent for this many tokens is dead.
      threshold_beta: decay of the running threshold.
      threshold_start: the running threshold is followed after this step.
      normalize: divide activations by their root mean squared norm.
      calibration_tokens: at most so many training tokens set the final threshold.
      chunk_steps: updates in one call of the device.
      checkpoint_every: steps between checkpoints, a multiple of `chunk_steps`.
      mesh: devices along the data axis and along the feature axis.
      seed: of the initialisation and the data order.
    """

    steps: int
    batch_size: int
    lr: float
    warmup_steps: int
    decay_start: int | None
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

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "lr", "dead_tokens", "calibration_tokens", "chunk_steps"):
            if not getattr(self, name) > 0:
                raise UserError(f"train.{name} is {getattr(self, name)}, but must be positive: change it")
        if not 0 <= self.warmup_steps < self.steps:
            raise UserError(
                f"train.warmup_steps is {self.warmup_steps}, but must lie below the {self.steps} steps: lower it"
            )
        if self.decay_start is not None and not self.warmup_steps < self.decay_start < self.steps:
            raise UserError(
                f"train.decay_start is {self.decay_start}, but must lie between the warmup ({self.warmup_steps}) "
                f"and the end ({self.steps}): change it"
            )
        if not 0 <= self.threshold_beta < 1:
            raise UserError(f"train.threshold_beta is {self.threshold_beta}, but must be in [0, 1): change it")
        if self.checkpoint_every < 1 or self.checkpoint_every % self.chunk_steps:
            raise UserError(
                f"train.checkpoint_every is {self.checkpoint_every}, but must be a multiple of train.chunk_steps "
                f"({self.chunk_steps}): change one of them"
            )
        if len(self.mesh) != 2 or min(self.mesh) < 1:
            raise UserError(f"train.mesh is {self.mesh}, but must be two positive sizes (data, feature): change it")
        if self.batch_size % self.mesh[0]:
            raise UserError(
                f"train.batch_size {self.batch_size} must be a multiple of the data axis of train.mesh "
                f"({self.mesh[0]}): change one of them"
            )

    @classmethod
    def from_section(cls, section: ml_collections.ConfigDict, sae: SaeConfig, seed: int) -> "TrainConfig":
        """Reads the `train` section for the autoencoder `sae`.

        Raises:
          UserError: a field is out of range or does not fit `sae`.
        """
        values = {field.name: section.get(field.name) for field in dataclasses.fields(cls)}
        lr = section.lr if section.lr is not None else 2e-4 / math.sqrt(sae.n_features / 2**14)
        config = cls(**values | {"lr": float(lr), "mesh": tuple(section.mesh), "seed": int(seed)})
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

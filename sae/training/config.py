"""The `sae` and `train` sections of the configuration, and what they give for activations of a certain width."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal

from maira_jax.errors import UserError
from maira_jax.model.sharding import device_memory, divides_evenly
from maira_jax.run import processes
from maira_jax.run.config import Section, setting
from sae.activations.config import ActivationSource
from sae.training.presets import PRESETS
from sae.variants import VARIANTS

# Updates in one call of the device: enough that the host never holds it up, few enough that a progress bar moves.
CHUNK_STEPS = 10
# Counts of kept entries are int32 on the device.
MAX_MATRIX = 2**31 - 1

# Weights, gradients and Adam's two moments in float32, and copies of the weights in the products' type.
_STATE_BYTES = 20  # per weight
_STATE_SHARE = 0.5  # of a device's memory; the rest is for activations

Dtype = Literal["float32", "bfloat16"]


class SaeSection(Section, name="sae"):
    """The autoencoder, and others that are trained from the same stream of activations."""

    expansion: float = setting(8.0, "Features for each dimension of the activations.", gt=0)
    kind: str = setting("batch_top_k", "The variant: which pre-activations are features.", choices=VARIANTS.names)
    k: int = setting(16, "Mean number of features per token; relu ignores it.", ge=1)
    l1: float = setting(0.0, "Weight in the loss of the sum of a token's features; for relu.", ge=0)
    group_fractions: tuple[float, ...] = setting(
        (0.5, 0.25, 0.125, 0.0625, 0.0625), "Share of the features in each nested (Matryoshka) group.", gt=0
    )
    group_weights: tuple[float, ...] = setting(
        (), "Weight in the loss of the reconstruction up to each group; empty: those of train.preset."
    )
    companions: dict[str, Any] = setting(
        {}, "NAME: the fields that differ, for more autoencoders trained from the same stream into sae-NAME/."
    )

    def check(self) -> None:
        """Refuses groups that do not make up the features, and companions that are not autoencoders."""
        fractions, weights = self.group_fractions, self.group_weights
        if not math.isclose(sum(fractions), 1.0):
            raise UserError(f"sae.group_fractions {fractions} must be positive and sum to 1: change it")
        if len(weights) not in (0, len(fractions)):
            raise UserError(
                f"sae.group_weights has {len(weights)} entries for {len(fractions)} groups: "
                "give one weight for each group, or none for those of train.preset"
            )
        known = self.deciding_alone().keys()
        for name, fields in self.companions.items():
            if not isinstance(fields, Mapping):
                raise UserError(
                    f"sae.companions.{name} is {fields!r}: give the fields of sae that differ, as a ConfigDict"
                )
            unknown = sorted(fields.keys() - known)
            if unknown or not name.isidentifier():
                raise UserError(
                    f"sae.companions.{name} {'sets ' + unknown[0] if unknown else 'is not a name'}: give a name of "
                    f"letters and digits, and fields of sae ({', '.join(sorted(known))})"
                )

    def deciding_alone(self) -> dict[str, Any]:
        """The fields that decide the autoencoder itself, whatever its companions are."""
        return {name: value for name, value in self.deciding().items() if name != "companions"}

    def autoencoders(self) -> dict[str, "SaeSection"]:
        """The section of each autoencoder, without companions, by the name of its folder.

        Raises:
          UserError: a companion's field is out of range.
        """
        own = self.model_dump() | {"companions": {}}
        found = {"sae": SaeSection.parse(own)}
        for name, fields in self.companions.items():
            try:
                found[f"sae-{name}"] = SaeSection.parse(own | dict(fields))
            except UserError as error:
                raise UserError(str(error).replace("sae.", f"sae.companions.{name}.", 1)) from error
        return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class SaeConfig:
    """A sparse autoencoder, nested (Matryoshka) where it has several groups.

    Attributes:
      d_model: width of the activations.
      n_features: number of features, over all groups.
      k: mean number of features per token.
      group_sizes: features of each group, in feature order; they sum to `n_features`.
      group_weights: weight in the loss of the reconstruction that ends with each group.
      kind: name of its variant in `sae.variants`.
      l1: weight in the loss of the summed features of a token.
    """

    d_model: int
    n_features: int
    k: int
    group_sizes: tuple[int, ...]
    group_weights: tuple[float, ...]
    kind: str
    l1: float

    @classmethod
    def resolve(cls, section: SaeSection, d_model: int, preset: str) -> "SaeConfig":
        """The autoencoder of a section for activations of width `d_model`; the preset gives weights left open.

        Raises:
          UserError: there are fewer features than the section asks for in a token or in a group.
        """
        n_features = int(section.expansion * d_model)
        sizes = group_sizes(section.group_fractions, n_features)
        if min(sizes) < 1:
            raise UserError(
                f"sae.group_fractions give groups of {sizes} features, which must be positive and sum to {n_features}: "
                "change sae.group_fractions or sae.expansion"
            )
        if section.k > n_features:
            raise UserError(f"sae.k is {section.k}, but must lie between 1 and the {n_features} features: change sae.k")
        return cls(
            d_model=d_model,
            n_features=n_features,
            k=section.k,
            group_sizes=sizes,
            group_weights=section.group_weights or PRESETS.get(preset).group_weights(len(sizes)),
            kind=section.kind,
            l1=section.l1,
        )


def group_sizes(fractions: tuple[float, ...], n_features: int) -> tuple[int, ...]:
    """Rounds each group down and gives the remainder to the last."""
    sizes = [int(fraction * n_features) for fraction in fractions[:-1]]
    return (*sizes, n_features - sum(sizes))


class TrainSection(Section, name="train"):
    """How autoencoders are trained. Lengths are in steps, except where tokens are named."""

    preset: str = setting("scaled", "Gives the fields that are left open (None).", choices=PRESETS.names)
    steps: int = setting(1500, "Number of updates.", ge=1)
    batch_size: int = setting(1024, "Tokens in an update.", ge=1)
    microbatches: int = setting(
        1, "Parts in which the gradients of a batch are computed, to save memory.", ge=1, decides=False
    )
    dtype: Dtype = setting(
        "float32",
        "Dtype of the factors of products, and of gradients and weights on their way between devices; weights and "
        "other sums are float32.",
    )
    lr: float | None = setting(None, "Peak learning rate; None: the preset's.", gt=0)
    warmup_steps: int | None = setting(
        None, "Steps over which the learning rate rises from 0; None: the preset's.", ge=0
    )
    decay_start: int | None = setting(
        None, "Step from which the learning rate falls to 0; train.steps: it stays; None: the preset's.", ge=0
    )
    auxk_alpha: float | None = setting(
        None, "Weight of the auxiliary loss that revives dead features; None: the preset's.", ge=0
    )
    dead_tokens: int | None = setting(
        None, "A feature that has not fired for this many tokens is dead; None: the preset's.", ge=1
    )
    resample_every: int = setting(
        0,
        "Steps after which dead features are replaced by badly reconstructed tokens, as long as the learning rate does "
        "not fall, since new ones must still learn; 0: never.",
        ge=0,
    )
    normalize: bool = setting(True, "Divide activations by their root mean squared norm; folded into the result.")
    calibration_tokens: int = setting(1_000_000, "At most this many held-out tokens set the final threshold.", ge=1)
    held_out_tokens: int = setting(
        2_000_000, "At most this many held-out tokens measure the finished autoencoder.", ge=1
    )
    checkpoint_every: int = setting(250, "Steps between checkpoints, a multiple of 10.", ge=1, decides=False)
    checkpoint_minutes: float = setting(
        30.0, "Minutes after which a checkpoint is written before train.checkpoint_every steps.", gt=0, decides=False
    )
    evaluate_every: int = setting(
        250,
        "Steps between evaluations on some held-out tokens, a multiple of 10; 0: at the end only.",
        ge=0,
        decides=False,
    )
    source: ActivationSource = setting(
        "store", "Activations: those of WORKDIR/activations, or those of the model, run while training."
    )
    readers: int | None = setting(None, "Threads that read the store; None: one per processor.", ge=1, decides=False)
    loss_recovered_studies: int = setting(
        64, "Held-out studies on which the loss recovered is measured; 0: none.", ge=0
    )

    def check(self) -> None:
        """Refuses intervals that end inside a chunk of steps."""
        for name in ("checkpoint_every", "evaluate_every"):
            if getattr(self, name) % CHUNK_STEPS:
                raise UserError(
                    f"train.{name} is {getattr(self, name)}, but must be a multiple of {CHUNK_STEPS}: change it"
                )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How an autoencoder is trained: a section whose open fields are filled, and the choices of its preset.

    Fields that `TrainSection` also has are described there.

    Attributes:
      beta1: decay of Adam's mean of the gradient.
      beta2: decay of Adam's mean of the squared gradient.
      threshold_beta: decay of the running threshold, which is only recorded: calibration sets the final one.
      threshold_start: step after which the running threshold is followed.
      seed: seed of the initialisation and of the data order.
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
    held_out_tokens: int
    checkpoint_every: int
    checkpoint_minutes: float
    mesh: tuple[int, int]
    seed: int
    microbatches: int
    dtype: Dtype
    beta1: float
    beta2: float
    resample_every: int
    evaluate_every: int

    def __post_init__(self) -> None:
        if not 0 <= self.warmup_steps < self.steps:
            raise UserError(
                f"train.warmup_steps is {self.warmup_steps}, but must lie below the {self.steps} steps: lower it"
            )
        if not self.warmup_steps < self.decay_start <= self.steps:
            raise UserError(
                f"train.decay_start is {self.decay_start}, but must lie between the warmup ({self.warmup_steps}) "
                f"and the end ({self.steps}): change it"
            )

    @classmethod
    def resolve(cls, section: TrainSection, sae: SaeConfig, seed: int, mesh: tuple[int, ...] = ()) -> "TrainConfig":
        """The training of a section for the autoencoder `sae`; fields that are None are those of its preset.

        Args:
          mesh: devices along the batch and along the features; () for `chosen_mesh`.

        Raises:
          UserError: a field does not fit another one or `sae`.
        """
        if section.batch_size * sae.n_features > MAX_MATRIX:
            raise UserError(
                f"train.batch_size {section.batch_size} times {sae.n_features} features exceeds 2^31: "
                "lower train.batch_size"
            )
        data, feature = mesh or chosen_mesh(section, sae)
        if section.batch_size % (data * section.microbatches):
            raise UserError(
                f"train.batch_size {section.batch_size} must be a multiple of the data axis of mesh ({data}) times "
                f"train.microbatches ({section.microbatches}): change one of them"
            )
        for size in sae.group_sizes:
            if size % feature:
                raise UserError(
                    f"a group of {size} features cannot be split over the second axis of mesh ({feature}): "
                    "change mesh or sae.group_fractions"
                )
        sizes = (section.steps, section.batch_size, sae.d_model, sae.n_features)
        preset = PRESETS.get(section.preset).train(*sizes)
        names = {field.name for field in dataclasses.fields(cls)}
        given = {name: value for name, value in section.model_dump().items() if name in names and value is not None}
        return cls(**preset | given, seed=seed, mesh=(data, feature))


def chosen_mesh(section: TrainSection, sae: SaeConfig) -> tuple[int, int]:
    """The mesh where none is asked for: the fewest devices along the features whose memory the state fits, and as many
    of the others along the batch as divide each of its microbatches.

    Raises:
      UserError: the processes of the run cannot share the batch.
    """
    devices, memory = len(processes.devices()), device_memory()
    sizes = [size for size in range(1, devices + 1) if all(group % size == 0 for group in sae.group_sizes)]
    state = _STATE_BYTES * 2 * sae.d_model * sae.n_features
    fitting = (size for size in sizes if memory is None or state / size <= _STATE_SHARE * memory)
    feature = next(fitting, sizes[-1])
    part, shares = section.batch_size // section.microbatches, processes.count()
    data = [n for n in range(1, devices // feature + 1) if part % n == 0 and divides_evenly((n, feature), shares)]
    if not data:
        raise UserError(
            f"train.batch_size {section.batch_size} in train.microbatches {section.microbatches} cannot be divided "
            f"over the devices of {shares} processes: give a multiple of both"
        )
    return data[-1], feature

"""Named sets of training choices, for the fields that the configuration leaves open (None).

dictionary_learning: the choices of its `MatryoshkaBatchTopKTrainer`, so that a run equals it step by step.
scaled: our own, whose lengths scale with the run, chosen with `python -m launch.bench recovery`.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

from maira_jax.run.registry import Registry

# The highest rate of any length and width, and the angle that rows turn by below it, as a random walk.
_MAX_LR, _ANGLE = 1.6e-2, 2.8
# A feature that has not fired for this many batches is dead: soon enough to be brought back in the shortest run.
_DEAD_BATCHES = 30


@dataclasses.dataclass(frozen=True)
class Preset:
    """Choices that depend on the autoencoder and the length of the run.

    Attributes:
      group_weights: gives the weight of each group in the loss, from the number of groups.
      train: gives fields of `sae.training.config.TrainConfig`, from the steps, the batch size, the width of the
        activations and the number of features.
    """

    group_weights: Callable[[int], tuple[float, ...]]
    train: Callable[[int, int, int, int], dict[str, Any]]


def _dictionary_learning(steps: int, batch_size: int, d_model: int, n_features: int) -> dict[str, Any]:
    return {
        "lr": 2e-4 / math.sqrt(n_features / 2**14),
        "warmup_steps": 1000,
        "decay_start": steps,
        "beta1": 0.9,
        "beta2": 0.999,
        "auxk_alpha": 1 / 32,
        "dead_tokens": 10_000_000,
        "threshold_beta": 0.999,
        "threshold_start": 1000,
    }


def _scaled(steps: int, batch_size: int, d_model: int, n_features: int) -> dict[str, Any]:
    """The rate falls with the root of steps and width, and dead features are found as early in every run.

    Adam moves each of a unit row's entries by about the rate: in a random walk over the run every row turns by the
    same angle, so more data never hurts. docs/reference/measured.md has the evidence. What else made a difference: a
    shorter memory of the squared gradient, since a sparse feature's gradient comes and goes; most of the loss's weight
    on the full reconstruction; a decay over half of the run.
    """
    return {
        "lr": min(_MAX_LR, _ANGLE / math.sqrt(d_model * steps)),
        "warmup_steps": steps // 20,
        "decay_start": steps - steps // 2,
        "beta1": 0.9,
        "beta2": 0.99,
        "auxk_alpha": 1 / 32,
        "dead_tokens": min(10_000_000, _DEAD_BATCHES * batch_size),
        "threshold_beta": 0.999,
        "threshold_start": min(1000, steps // 2),
    }


def _mostly_the_last(n_groups: int) -> tuple[float, ...]:
    return (*(0.2 / (n_groups - 1) for _ in range(n_groups - 1)), 0.8) if n_groups > 1 else (1.0,)


PRESETS: Registry[Preset] = Registry("train.preset")
# Its loss is the mean over groups of weighted errors, and its weights are one over the number of groups.
PRESETS.register("dictionary_learning")(Preset(lambda n: (1 / n**2,) * n, _dictionary_learning))
PRESETS.register("scaled")(Preset(_mostly_the_last, _scaled))

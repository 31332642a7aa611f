"""Named sets of training choices, which stand wherever the configuration leaves a field open (None).

dictionary_learning: those of its `MatryoshkaBatchTopKTrainer`, so that a run equals it step by step.
default: ours, chosen by `python -m launch.bench recovery`.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

from maira_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Preset:
    """Choices that depend on the autoencoder and the length of the run.

    Attributes:
      group_weights: number of groups -> weight of each in the loss.
      train: (steps, batch size, features) -> fields of `sae.training.config.TrainConfig`.
    """

    group_weights: Callable[[int], tuple[float, ...]]
    train: Callable[[int, int, int], dict[str, Any]]


def _dictionary_learning(steps: int, batch_size: int, n_features: int) -> dict[str, Any]:
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


def _default(steps: int, batch_size: int, n_features: int) -> dict[str, Any]:
    """Lengths go by the run's: a fixed warmup or dead window never ends in a short one.

    What made the difference, in this order: a rate eight times higher; a shorter memory of the squared gradient, since
    a sparse feature's gradient comes and goes; dead features found early; most of the loss's weight on the full
    reconstruction; a decay over half of the run.
    """
    return {
        "lr": 1.6e-3 / math.sqrt(n_features / 2**14),
        "warmup_steps": steps // 20,
        "decay_start": steps - steps // 2,
        "beta1": 0.9,
        "beta2": 0.99,
        "auxk_alpha": 1 / 32,
        "dead_tokens": min(10_000_000, max(steps // 50, 1) * batch_size),
        "threshold_beta": 0.999,
        "threshold_start": min(1000, steps // 2),
    }


def _most_on_the_last(n_groups: int) -> tuple[float, ...]:
    return (*(0.2 / (n_groups - 1) for _ in range(n_groups - 1)), 0.8) if n_groups > 1 else (1.0,)


PRESETS = {
    # A mean over the groups comes on top of weights of one over their number.
    "dictionary_learning": Preset(lambda n: (1 / n**2,) * n, _dictionary_learning),
    "default": Preset(_most_on_the_last, _default),
}


def named(name: str) -> Preset:
    """The preset of this name.

    Raises:
      UserError: there is none.
    """
    if name not in PRESETS:
        raise UserError(f"train.preset is {name!r}: choose one of {', '.join(PRESETS)}")
    return PRESETS[name]

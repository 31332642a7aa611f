"""The label of images that goes best with how strongly a feature is active, where any image makes it active at all."""

from collections.abc import Sequence

import numpy as np

from interp.explainers.evidence import ExplainTask

_MIN_CORRELATION = 0.5
_MIN_EXAMPLES = 5  # with the label, and without it


def strongest_label(task: ExplainTask, shows: Sequence[frozenset[str]]) -> str:
    """The label whose presence correlates best with the activation in a task's images.

    A rule that says where a feature is active at all says nothing of what it measures: a feature that is active in a
    few patches of any image may be ten times as active where the image has a pneumothorax.

    Args:
      task: the contexts of a feature, active and not.
      shows: for each of `task.activating` and then `task.others` the labels of its image; empty for text.

    Returns:
      The label with the largest correlation, the first one by name of several; empty where none reaches 0.5, or none
      is there in five images and missing in five.
    """
    examples = (*task.activating, *task.others)
    images = [number for number, example in enumerate(examples) if example.image is not None]
    names = sorted({name for number in images for name in shows[number]})
    strength = np.array([max(examples[number].activations) for number in images])  # [n]
    has = np.array([[name in shows[number] for name in names] for number in images], bool).reshape(
        len(images), len(names)
    )
    counts = has.sum(0)
    usable = (counts >= _MIN_EXAMPLES) & (len(images) - counts >= _MIN_EXAMPLES)  # [labels]
    if not usable.any() or not np.ptp(strength):
        return ""
    centred, strength = has - has.mean(0), strength - strength.mean()
    scale = np.sqrt((centred**2).sum(0) * (strength**2).sum())
    correlation = np.where(usable, strength @ centred / np.maximum(scale, 1e-12), -1.0)  # [labels]
    best = int(correlation.argmax())
    return names[best] if correlation[best] >= _MIN_CORRELATION else ""

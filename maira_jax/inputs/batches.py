"""Requests as the model's input: batches of a few static shapes."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from maira_jax.inputs.image import ImageConfig, preprocess
from maira_jax.inputs.tokens import Encoded, Tokenizer
from maira_jax.studies.study import ImageSource


class Request(NamedTuple):
    """What the model is given: a tokenised prompt, and the images that its image tokens stand for, in their order."""

    encoded: Encoded
    images: tuple[ImageSource, ...]


class Plan(NamedTuple):
    """Requests with the same number of images that go through the model together, padded to `length` tokens."""

    rows: tuple[int, ...]
    length: int


class Inputs(NamedTuple):
    """A batch of requests with the same number of images, padded on the left.

    Attributes:
      tokens: int32 [batch, positions].
      mask: bool [batch, positions], False on padding.
      kinds: int8 [batch, positions], `Kind` of each token.
      pixels: float32 [batch, images, size, size, 3], or None without images.
    """

    tokens: np.ndarray
    mask: np.ndarray
    kinds: np.ndarray
    pixels: np.ndarray | None


def plan(requests: Sequence[Request], batch_size: int, length_step: int) -> list[Plan]:
    """Groups requests by number of images and by length; the order is deterministic.

    Args:
      batch_size: a group's last batch may have fewer rows.
      length_step: lengths are rounded up to a multiple of it, so that few shapes are compiled.
    """
    groups: dict[tuple[int, int], list[int]] = {}
    for row, request in enumerate(requests):
        length = -(-len(request.encoded) // length_step) * length_step
        groups.setdefault((len(request.images), length), []).append(row)
    return [
        Plan(tuple(group[start : start + batch_size]), length)
        for (_, length), group in sorted(groups.items())
        for start in range(0, len(group), batch_size)
    ]


def assemble(requests: Sequence[Request], tokenizer: Tokenizer, image_cfg: ImageConfig, length: int) -> Inputs:
    """Pads requests with the same number of images to `length` tokens; a request that occurs often is read once.

    Raises:
      UserError: an image cannot be read.
    """
    tokens, mask, kinds = tokenizer.batch([request.encoded for request in requests], length)
    seen: dict[int, list[np.ndarray]] = {}
    for request in requests:
        if id(request) not in seen:
            seen[id(request)] = [preprocess(image, image_cfg) for image in request.images]
    pixels = np.asarray([seen[id(request)] for request in requests]) if requests[0].images else None
    return Inputs(tokens, mask, kinds, pixels)

"""The one way from studies to the model's input: requests, grouped into padded batches of a few static shapes.

Every stage that runs the model builds its batches here: generation, pretraining, the harvest, loss recovered, steering.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, TypeVar

import jax
import numpy as np

from maira_jax.errors import UserError
from maira_jax.inputs.image import ImageConfig, preprocess
from maira_jax.inputs.image_readers import ImageReaders
from maira_jax.inputs.prompt import reporting_prompt, study_images
from maira_jax.inputs.tokens import Encoded, Tokenizer
from maira_jax.studies.study import ImageSource, Study

# Padded lengths, for each of which a program is compiled: few programs, with little padding for usual lengths.
_N_LENGTHS = 4
# Lengths from the first number on are padded to a multiple of the second: kernels work on blocks of 128 positions, and
# other lengths would be padded, and copied, for every token that is generated.
_LENGTH_STEPS = ((0, 8), (1024, 128))

# The positions of MAIRA-2's language model (4,096, stretched by 1.5). Attention's memory grows with their square.
_MAX_TOKENS = 6144

T = TypeVar("T")
Label = TypeVar("Label")


class GenerationRequest(NamedTuple):
    """What the model is given: a tokenised prompt, and the images that its image tokens stand for, in their order."""

    encoded: Encoded
    images: tuple[ImageSource, ...]


class BatchPlan(NamedTuple):
    """Numbers of the requests that go through the model together, padded to `length` tokens and `n_images` images."""

    rows: tuple[int, ...]
    length: int
    n_images: int


class InputBatch(NamedTuple):
    """A batch of requests, padded on the right.

    Attributes:
      tokens: int32 [batch, positions].
      mask: bool [batch, positions], False on padding.
      kinds: int8 [batch, positions], `Kind` of each token.
      pixels: float32 [batch, images, size, size, 3], zeros in place of images that a request does not have; None
        without images.
    """

    tokens: np.ndarray
    mask: np.ndarray
    kinds: np.ndarray
    pixels: np.ndarray | None


def reporting_request(
    study: Study, tokenizer: Tokenizer, *, findings: str | None = None, grounded: bool = False
) -> GenerationRequest:
    """The request for the findings of a study.

    Args:
      study: the study, whose images and sections become the prompt.
      tokenizer: the checkpoint's tokenizer.
      findings: a text that follows the prompt, with the end token after it (teacher forcing); None: the prompt alone.
      grounded: whether the prompt asks for bounding boxes.

    Raises:
      UserError: the study has no prompt (see `reporting_prompt`), its texts are longer than the model's positions, or
        the findings hold the image token.
    """
    encoded = tokenizer.encode(reporting_prompt(study, grounded), findings)
    if len(encoded) > _MAX_TOKENS:
        raise UserError(
            f"study {study.study_id} has {len(encoded):,} tokens with its texts: shorten them to {_MAX_TOKENS:,}, or "
            "leave the study out"
        )
    return GenerationRequest(encoded, study_images(study))


def padded_length(size: int) -> int:
    """The length that a row of `size` tokens is padded to at least."""
    step = [step for first, step in _LENGTH_STEPS if size >= first][-1]
    return -(-size // step) * step


def buckets(requests: Sequence[GenerationRequest]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The few shapes that requests are padded to; about the same number of them to each.

    Returns:
      At most `_N_LENGTHS` lengths in tokens, ascending, and for each the largest number of images of a request that is
      not longer.
    """
    sizes = np.array([len(request.encoded) for request in requests])  # [requests]
    images = np.array([len(request.images) for request in requests])  # [requests]
    quantiles = np.quantile(sizes, np.arange(1, _N_LENGTHS + 1) / _N_LENGTHS, method="higher")
    lengths = tuple(sorted({padded_length(int(size)) for size in quantiles}))
    return lengths, tuple(int(max(images[sizes <= length], default=0)) for length in lengths)


def plan_batches(requests: Sequence[GenerationRequest], batch_size: int) -> list[BatchPlan]:
    """Groups requests by length; the order is deterministic.

    Args:
      requests: what the model is given.
      batch_size: number of requests in a batch; a group's last batch may have fewer (see `fill_up`).
    """
    if not requests:
        return []
    lengths, n_images = buckets(requests)
    bucket = np.searchsorted(lengths, [len(request.encoded) for request in requests])  # [requests]
    groups = [np.flatnonzero(bucket == i).tolist() for i in range(len(lengths))]
    return [
        BatchPlan(tuple(group[start : start + batch_size]), length, images)
        for group, length, images in zip(groups, lengths, n_images, strict=True)
        for start in range(0, len(group), batch_size)
    ]


def fill_up(members: Sequence[T], batch_size: int) -> list[T]:
    """The members of a short batch, with the last one repeated up to `batch_size`: every batch has the same shape."""
    return [*members, *[members[-1]] * (batch_size - len(members))]


def assemble(
    requests: Sequence[GenerationRequest],
    tokenizer: Tokenizer,
    image_cfg: ImageConfig,
    length: int,
    n_images: int | None = None,
    pixels_of: Callable[[int], np.ndarray] | None = None,
) -> InputBatch:
    """Pads requests to `length` tokens and `n_images` images; the images of a repeated request are read once.

    Args:
      requests: what the model is given.
      tokenizer: the checkpoint's tokenizer.
      image_cfg: how the checkpoint's vision tower takes its images.
      length: number of tokens that every row is padded to.
      n_images: number of images that every row is padded to; None: that of the request with most of them.
      pixels_of: gives the pixels of a row as `read_images` does, for a caller that keeps them; None: they are read.

    Raises:
      UserError: an image cannot be read.
    """
    tokens, mask, kinds = tokenizer.batch([request.encoded for request in requests], length)  # each [B, T]
    n_images = max(len(request.images) for request in requests) if n_images is None else n_images
    if not n_images:
        return InputBatch(tokens, mask, kinds, None)
    pixels = np.empty((len(requests), n_images, image_cfg.size, image_cfg.size, 3), np.float32)
    first_rows: dict[int, int] = {}
    for row, request in enumerate(requests):
        first = first_rows.setdefault(id(request.images), row)
        if first < row:
            pixels[row] = pixels[first]
        else:
            pixels[row] = pixels_of(row) if pixels_of else read_images(request.images, n_images, image_cfg)
    return InputBatch(tokens, mask, kinds, pixels)


def assemble_ahead(
    batches: Iterable[tuple[Label, Sequence[GenerationRequest], int, int]], tokenizer: Tokenizer, image_cfg: ImageConfig
) -> Iterator[tuple[Label, InputBatch]]:
    """Assembles batches while the images of the next ones are read, those in files by processes of their own.

    Args:
      batches: a label, the requests, and the numbers of tokens and images that `assemble` pads them to.
      tokenizer: the checkpoint's tokenizer.
      image_cfg: how the checkpoint's vision tower takes its images.

    Yields:
      Each label with its batch.

    Raises:
      UserError: an image cannot be read.
    """
    levels = image_cfg.levels()
    with contextlib.closing(ImageReaders(image_cfg.size)) as readers:
        groups = ((batch, [image for request in batch[1] for image in request.images]) for batch in batches)
        for (label, requests, length, n_images), squares in readers.ahead(groups):
            yield label, _assembled(requests, length, n_images, squares, levels, tokenizer, image_cfg)


def _assembled(
    requests: Sequence[GenerationRequest],
    length: int,
    n_images: int,
    squares: Sequence[np.ndarray],
    levels: np.ndarray,
    tokenizer: Tokenizer,
    image_cfg: ImageConfig,
) -> InputBatch:
    """`assemble`, given `to_grey_square` of all images of the requests in their order."""
    ends = np.cumsum([len(request.images) for request in requests])

    def pixels_of(row: int) -> np.ndarray:
        own = squares[ends[row] - len(requests[row].images) : ends[row]]
        return normalised(own, n_images, levels, image_cfg.size)

    with jax.profiler.TraceAnnotation("assemble"):
        return assemble(requests, tokenizer, image_cfg, length, n_images, pixels_of)


def normalised(squares: Sequence[np.ndarray], n_images: int, levels: np.ndarray, size: int) -> np.ndarray:
    """The images of one request for the vision tower, zeros after the last: float32 [n_images, size, size, 3].

    Args:
      squares: `to_grey_square` of each.
      n_images: number of images that the request is padded to.
      levels: `ImageConfig.levels`.
      size: side of the squares.
    """
    pixels = np.zeros((n_images, size, size, 3), np.float32)
    for slot, square in enumerate(squares):
        np.take(levels, square, axis=0, out=pixels[slot])
    return pixels


def read_images(images: Sequence[ImageSource], n_images: int, image_cfg: ImageConfig) -> np.ndarray:
    """The images of one request for the vision tower, zeros after the last: float32 [n_images, size, size, 3].

    Raises:
      UserError: an image cannot be read.
    """
    pixels = np.zeros((n_images, image_cfg.size, image_cfg.size, 3), np.float32)
    for slot, image in enumerate(images):
        pixels[slot] = preprocess(image, image_cfg)
    return pixels

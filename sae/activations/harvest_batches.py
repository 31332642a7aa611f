"""Batches of a harvest: which studies go through the model together, and what it is given for them."""

import dataclasses
from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from maira_jax.inputs.batches import fill_up
from maira_jax.inputs.image import ImageConfig
from maira_jax.inputs.image_readers import image_key
from maira_jax.inputs.tokens import Tokenizer
from maira_jax.studies.study import ImageSource
from sae.activations.harvest_plan import HarvestPlan

# Batches that are formed together, the longest studies first, have studies of at most this many kept tokens: the host
# holds their activations until their shards are whole.
_WINDOW_TOKENS = 2**16
_MAX_WINDOW_BATCHES = 64


@dataclasses.dataclass(frozen=True)
class HarvestBatch:
    """Studies that go through the model together.

    Attributes:
      studies: numbers of the studies in the plan; the last one is repeated to fill the batch up.
      bucket: index into the plan's padded lengths.
      images: the different images of these studies, in order.
    """

    studies: tuple[int, ...]
    bucket: int
    images: tuple[ImageSource, ...]


class HarvestInputs(NamedTuple):
    """What the model is given for a batch. Each axis that a mesh splits over `data` is the first.

    Attributes:
      tokens: int32 [batch, positions], padded on the right.
      mask: bool [batch, positions], False on padding.
      pixels: float32 [different images, size, size, 3], zeros after the last; None where no study has an image.
      images: for each row's images their numbers in `pixels`, int32 [batch, images]; None as `pixels`.
      kept: positions of the kept tokens of all rows of a group, counted through its rows: int32 [groups, capacity].
    """

    tokens: np.ndarray
    mask: np.ndarray
    pixels: np.ndarray | None
    images: np.ndarray | None
    kept: np.ndarray


class HarvestBatches:
    """Forms the batches of a plan, and the model's input for each, in few shapes.

    Args:
      plan: which tokens of which study are kept.
      tokenizer: the checkpoint's tokenizer.
      image_cfg: how the checkpoint's vision tower takes its images.
      batch_size: number of studies in a batch.
      groups: number of equal parts that the rows of a batch are divided into, one for each device of a mesh's `data`.
    """

    def __init__(
        self, plan: HarvestPlan, tokenizer: Tokenizer, image_cfg: ImageConfig, batch_size: int, groups: int = 1
    ):
        self._plan, self._tokenizer, self._batch_size, self._groups = plan, tokenizer, batch_size, groups
        self._size, self._levels = image_cfg.size, image_cfg.levels()
        counts, buckets = np.array([len(kept) for kept in plan.kept]), plan.buckets()
        # The last studies of a short batch may be of smaller buckets than its first.
        at_most = [np.sort(counts[buckets <= i])[-batch_size // groups :].sum() for i in range(len(plan.lengths))]
        self._capacity = tuple(max(int(total), 1) for total in at_most)
        # One number of images, and so one program, for each padded length.
        self._max_images = [1] * len(plan.lengths)
        for batch in self.all():
            self._max_images[batch.bucket] = max(self._max_images[batch.bucket], len(batch.images))

    def of(self, studies: Sequence[int]) -> list[HarvestBatch]:
        """Groups the studies of these numbers into batches, the longest study first."""
        plan = self._plan
        chosen = sorted((i for i in studies if len(plan.kept[i])), key=lambda i: (-len(plan.requests[i].encoded), i))
        parts = [tuple(chosen[at : at + self._batch_size]) for at in range(0, len(chosen), self._batch_size)]
        return [self._batch(part) for part in parts]

    def all(self, without: Collection[int] = ()) -> Iterator[HarvestBatch]:
        """The batches of all studies but some, which depend on the plan alone and not on where its shards end.

        Studies of similar length are sought within windows of neighbouring studies, so that the activations that wait
        for their neighbours fit in memory.
        """
        kept = [i for i, positions in enumerate(self._plan.kept) if len(positions)]
        fitting = _WINDOW_TOKENS * len(kept) // (self._plan.n_tokens * self._batch_size)
        window = self._batch_size * min(max(fitting, 1), _MAX_WINDOW_BATCHES)
        computed = [i for i in kept if i not in without]
        for first in range(0, len(computed), window):
            yield from self.of(computed[first : first + window])

    def _batch(self, studies: tuple[int, ...]) -> HarvestBatch:
        images = {image_key(image): image for i in studies for image in self._plan.requests[i].images}
        bucket = int(np.searchsorted(self._plan.lengths, len(self._plan.requests[studies[0]].encoded)))
        return HarvestBatch(studies, bucket, tuple(images.values()))

    def inputs(self, batch: HarvestBatch, squares: Sequence[np.ndarray]) -> HarvestInputs:
        """The model's input for a batch.

        Args:
          batch: one of `of` or `all`.
          squares: `to_grey_square` of each of its images.
        """
        plan = self._plan
        requests = [plan.requests[i] for i in fill_up(batch.studies, self._batch_size)]
        length, n_images = plan.lengths[batch.bucket], plan.n_images[batch.bucket]
        tokens, mask, _ = self._tokenizer.batch([request.encoded for request in requests], length)  # each [B, T]
        kept = self._kept(batch, length)  # [groups, capacity]
        if not n_images:
            return HarvestInputs(tokens, mask, None, None, kept)
        numbers = {image_key(image): number for number, image in enumerate(batch.images)}
        images = np.zeros((self._batch_size, n_images), np.int32)
        for row, request in enumerate(requests):
            images[row, : len(request.images)] = [numbers[image_key(image)] for image in request.images]
        # Those of a batch that is not one of `all` may be more.
        slots = self._max_images[batch.bucket]
        slots = slots if len(squares) <= slots else self._batch_size * n_images
        return HarvestInputs(tokens, mask, self._pixels(squares, slots), images, kept)

    def _pixels(self, squares: Sequence[np.ndarray], slots: int) -> np.ndarray:
        """The images, normalised, and zeros up to a number of slots that the groups divide."""
        slots = -(-slots // self._groups) * self._groups
        pixels = np.zeros((slots, self._size, self._size, 3), np.float32)
        for number, square in enumerate(squares):
            np.take(self._levels, square, axis=0, out=pixels[number])
        return pixels

    def _kept(self, batch: HarvestBatch, length: int) -> np.ndarray:
        each, kept = self._rows_of_group(batch), np.zeros((self._groups, self._capacity[batch.bucket]), np.int32)
        for group, rows in enumerate(each):
            first = group * self._batch_size // self._groups
            places = [(row - first) * length + self._plan.kept[batch.studies[row]] for row in rows]
            found = np.concatenate([np.empty(0, np.int64), *places])
            kept[group, : len(found)] = found
        return kept

    def _rows_of_group(self, batch: HarvestBatch) -> list[range]:
        """The rows of each group that hold a study, without those that fill the batch up."""
        size = self._batch_size // self._groups
        return [range(first, min(first + size, len(batch.studies))) for first in range(0, self._batch_size, size)]

    def apart(self, batch: HarvestBatch, activations: np.ndarray) -> list[np.ndarray]:
        """Each study's kept activations, [kept, d_model], out of those of the batch, [groups, capacity, d_model]."""
        found = []
        for group, rows in enumerate(self._rows_of_group(batch)):
            sizes = [len(self._plan.kept[batch.studies[row]]) for row in rows]
            ends = np.cumsum(sizes, dtype=np.int64)
            found += [activations[group, end - size : end] for size, end in zip(sizes, ends, strict=True)]
        return found

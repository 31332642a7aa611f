"""Studies as the model's input: batches of a few static shapes."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from maira_jax.processing.image import ImageConfig, preprocess
from maira_jax.processing.prompt import reporting_prompt, study_images
from maira_jax.processing.tokens import Encoded, Tokenizer
from maira_jax.studies.study import Study


class Inputs(NamedTuple):
    """A batch of studies with the same number of images, padded on the left.

    Attributes:
      rows: int64 [batch], which study each row is; -1 for a row that only fills the batch up.
      tokens: int32 [batch, positions].
      mask: bool [batch, positions], False on padding.
      kinds: int8 [batch, positions], `Kind` of each token.
      pixels: float32 [batch, images, size, size, 3], or None without images.
    """

    rows: np.ndarray
    tokens: np.ndarray
    mask: np.ndarray
    kinds: np.ndarray
    pixels: np.ndarray | None


def assemble(
    studies: Sequence[Study], encoded: Sequence[Encoded], tokenizer: Tokenizer, image_cfg: ImageConfig, length: int
) -> Inputs:
    """Pads studies with the same number of images to `length` tokens."""
    tokens, mask, kinds = tokenizer.batch(encoded, length)
    images = [[preprocess(image, image_cfg) for image in study_images(study)] for study in studies]
    pixels = np.asarray(images) if images[0] else None
    return Inputs(np.arange(len(studies)), tokens, mask, kinds, pixels)


def batches(
    studies: Sequence[Study],
    tokenizer: Tokenizer,
    image_cfg: ImageConfig,
    batch_size: int,
    *,
    findings: bool,
    length_step: int = 32,
) -> Iterator[Inputs]:
    """Reporting prompts in batches, grouped by number of images and by length; the order is deterministic.

    Args:
      findings: teacher-forced with the studies' findings, or the prompt alone.
      length_step: lengths are rounded up to a multiple of it, so that few shapes are compiled.

    Raises:
      UserError: an image cannot be read, or a study cannot be prompted for.
    """
    groups: dict[tuple[int, int], list[tuple[int, Encoded]]] = {}
    for row, study in enumerate(studies):
        encoded = tokenizer.encode(reporting_prompt(study), study.findings if findings else None)
        length = -(-len(encoded) // length_step) * length_step
        groups.setdefault((len(study_images(study)), length), []).append((row, encoded))
    for (_, length), group in sorted(groups.items()):
        for start in range(0, len(group), batch_size):
            part = group[start : start + batch_size]
            filled = part + [part[0]] * (batch_size - len(part))
            batch = assemble(
                [studies[row] for row, _ in filled], [encoded for _, encoded in filled], tokenizer, image_cfg, length
            )
            rows = np.array([row for row, _ in part] + [-1] * (batch_size - len(part)))
            yield batch._replace(rows=rows)

"""Studies as the model's input, a batch at a time, in shapes that are the same for every batch."""

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np

from maira_jax.errors import UserError
from maira_jax.processing.image import ImageConfig, preprocess
from maira_jax.processing.prompt import reporting_prompt, study_images
from maira_jax.processing.tokens import Encoded, Tokenizer
from maira_jax.studies.study import Study


@dataclasses.dataclass
class Prompts:
    """The prompts of some studies.

    Attributes:
      studies: the studies.
      rows: their tokenised prompts.
      tokenizer: the checkpoint's.
      image: how the checkpoint wants its images.
      length: tokens of the longest prompt; all are padded to it.
      slots: images of the study with most of them.
    """

    studies: Sequence[Study]
    rows: Sequence[Encoded]
    tokenizer: Tokenizer
    image: ImageConfig
    length: int
    slots: int
    _pixels: dict[int, np.ndarray] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, studies: Sequence[Study], model_dir: Path) -> Self:
        """Tokenises the reporting prompts of `studies` with the tokenizer in `model_dir`.

        Raises:
          UserError: there are no studies, or one has no prompt (see `reporting_prompt`).
        """
        if not studies:
            raise UserError("there is no study to write reports for: check the studies section")
        tokenizer = Tokenizer.from_dir(model_dir)
        rows = [tokenizer.encode(reporting_prompt(study), None) for study in studies]
        return cls(
            studies=studies,
            rows=rows,
            tokenizer=tokenizer,
            image=ImageConfig.from_dir(model_dir),
            length=max(len(row) for row in rows),
            slots=max(len(study_images(study)) for study in studies),
        )

    def batch(self, which: Sequence[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """The model's input for the studies numbered `which`; a number may occur often.

        Returns:
          tokens int32 [batch, length], mask bool [batch, length], and pixels float32
          [batch, slots, size, size, 3], or None where no study has an image.
        """
        tokens, mask, _ = self.tokenizer.batch([self.rows[i] for i in which], length=self.length)
        if not self.slots:
            return tokens, mask, None
        # Rows come study by study: only the pixels of this batch's studies are kept.
        self._pixels = {i: self._pixels[i] if i in self._pixels else self._see(i) for i in set(which)}
        return tokens, mask, np.stack([self._pixels[i] for i in which])

    def _see(self, number: int) -> np.ndarray:
        size = self.image.size
        pixels = np.zeros((self.slots, size, size, 3), np.float32)
        for slot, source in enumerate(study_images(self.studies[number])):
            pixels[slot] = preprocess(source, self.image)
        return pixels

    def digest(self, number: int) -> str:
        """Names what the model is shown of a study: the first 16 hex digits of a hash over tokens and pixels."""
        digest = hashlib.sha256(self.rows[number].ids.tobytes())
        if self.slots:
            digest.update(self._see(number).tobytes())
        return digest.hexdigest()[:16]

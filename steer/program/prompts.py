"""Studies as the model's input, a batch at a time, in shapes that are the same for every batch."""

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np

from maira_jax.errors import UserError
from maira_jax.inputs.image import ImageConfig, preprocess
from maira_jax.inputs.prompt import reporting_prompt, study_images
from maira_jax.inputs.tokens import Encoded, Tokenizer
from maira_jax.studies.study import Study


class Batch(NamedTuple):
    """The model's input.

    Attributes:
      tokens: int32 [batch, length], padded on the left.
      mask: bool [batch, length], False on padding.
      kinds: int8 [batch, length], `Kind` of each token.
      pixels: float32 [batch, slots, size, size, 3], or None where no study has an image.
    """

    tokens: np.ndarray
    mask: np.ndarray
    kinds: np.ndarray
    pixels: np.ndarray | None


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

    def batch(self, which: Sequence[int], said: Sequence[str] | None = None, length: int | None = None) -> Batch:
        """The model's input for the studies numbered `which`; a number may occur often.

        Args:
          said: a sentence for each of `which`, which is added to the study's indication.
          length: that all are padded to; None: that of the longest prompt without a sentence.
        """
        rows = [self.rows[i] for i in which]
        if said is not None:
            rows = [self._encode(self.studies[i], sentence) for i, sentence in zip(which, said, strict=True)]
        tokens, mask, kinds = self.tokenizer.batch(rows, length=self.length if length is None else length)
        if not self.slots:
            return Batch(tokens, mask, kinds, None)
        # Rows come study by study: only the pixels of this batch's studies are kept.
        known = self._pixels
        self._pixels = pixels = {i: known[i] if i in known else self._see(i) for i in set(which)}
        return Batch(tokens, mask, kinds, np.stack([pixels[i] for i in which]))

    def length_with(self, said: Sequence[str]) -> int:
        """The length of the longest prompt with any of these sentences."""
        return max(len(self._encode(study, sentence)) for study in self.studies for sentence in said)

    def _encode(self, study: Study, sentence: str) -> Encoded:
        indication = " ".join(part for part in (study.indication, sentence) if part)
        return self.tokenizer.encode(reporting_prompt(dataclasses.replace(study, indication=indication)), None)

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

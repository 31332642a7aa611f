"""The studies of a sweep as the model's input: every batch is padded to the same shape, so one program is compiled."""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

import numpy as np

from maira_jax.errors import UserError
from maira_jax.inputs.batches import (
    GenerationRequest,
    InputBatch,
    assemble,
    normalised,
    padded_length,
    reporting_request,
)
from maira_jax.inputs.image import ImageConfig
from maira_jax.inputs.image_readers import ImageReaders
from maira_jax.inputs.tokens import Tokenizer
from maira_jax.studies.study import Study

# Studies whose pixels are kept: those of a study are needed for every call of the program on its prompt and for its
# digest, up to three times.
_KEPT_STUDIES = 32
_AHEAD = 8  # studies whose images are begun to be read when those of the first are needed


@dataclasses.dataclass(frozen=True)
class Prompts:
    """The prompts of the studies of a sweep.

    Attributes:
      studies: the studies.
      requests: their tokenised prompts with their images.
      tokenizer: the checkpoint's tokenizer.
      image_cfg: how the checkpoint's vision tower takes its images.
      length: the length that all prompts are padded to.
      n_images: images of the study with most of them; all are padded to it.
      pixels: gives the pixels of a study by its number, float32 [n_images, size, size, 3].
    """

    studies: Sequence[Study]
    requests: Sequence[GenerationRequest]
    tokenizer: Tokenizer
    image_cfg: ImageConfig
    length: int
    n_images: int
    pixels: Callable[[int], np.ndarray]

    @classmethod
    def of(cls, studies: Sequence[Study], model_dir: Path) -> Self:
        """Tokenises the reporting prompts of `studies` with the tokenizer in `model_dir`.

        Raises:
          UserError: there are no studies, or one has no prompt (see `reporting_prompt`).
        """
        if not studies:
            raise UserError("there is no study to write reports for: check the studies section")
        tokenizer = Tokenizer.from_dir(model_dir)
        image_cfg = ImageConfig.from_dir(model_dir)
        requests = [reporting_request(study, tokenizer) for study in studies]
        n_images = max(len(request.images) for request in requests)
        readers, levels = ImageReaders(image_cfg.size), image_cfg.levels()

        def pixels(number: int) -> np.ndarray:
            ahead = [[readers.submit(image) for image in request.images] for request in requests[number:][:_AHEAD]]
            return normalised([square.result() for square in ahead[0]], n_images, levels, image_cfg.size)

        return cls(
            studies=studies,
            requests=requests,
            tokenizer=tokenizer,
            image_cfg=image_cfg,
            length=padded_length(max(len(request.encoded) for request in requests)),
            n_images=n_images,
            pixels=functools.lru_cache(_KEPT_STUDIES)(pixels),
        )

    def batch(
        self, numbers: Sequence[int], sentences: Sequence[str] | None = None, length: int | None = None
    ) -> InputBatch:
        """The model's input for some studies.

        Args:
          numbers: indices into `studies`; one may occur often.
          sentences: a sentence for each of `numbers`, which is added to the study's indication.
          length: tokens that every row is padded to; None: as many as without a sentence.
        """
        requests = [self.requests[number] for number in numbers]
        if sentences is not None:
            requests = [self._with_sentence(number, text) for number, text in zip(numbers, sentences, strict=True)]
        return assemble(
            requests,
            self.tokenizer,
            self.image_cfg,
            length or self.length,
            self.n_images,
            pixels_of=lambda row: self.pixels(numbers[row]),
        )

    def length_with(self, sentences: Sequence[str]) -> int:
        """The length that all prompts with any of these sentences are padded to."""
        numbers = range(len(self.studies))
        sizes = (len(self._with_sentence(number, text).encoded) for number in numbers for text in sentences)
        return padded_length(max(sizes))

    def _with_sentence(self, number: int, sentence: str) -> GenerationRequest:
        """The request of a study whose indication ends with `sentence`."""
        study = self.studies[number]
        indication = " ".join(part for part in (study.indication, sentence) if part)
        request = reporting_request(dataclasses.replace(study, indication=indication), self.tokenizer)
        return request._replace(images=self.requests[number].images)  # the same object: they are read once

    def digest(self, number: int) -> str:
        """Names what the model is shown of a study: the first 16 hex digits of a hash over tokens and pixels."""
        request = self.requests[number]
        digest = hashlib.sha256(request.encoded.ids.tobytes())
        if request.images:
            digest.update(self.pixels(number)[: len(request.images)].tobytes())  # without the padding to other studies
        return digest.hexdigest()[:16]

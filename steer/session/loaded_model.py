"""A model that stays loaded: it writes reports with edits and gives the activations of any site, study by study.

Everything is padded to one shape, so that another study, feature or strength runs the program that is there.
"""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Self

import jax
import numpy as np
from jax.sharding import Mesh

from maira_jax.checkpoint import convert, store
from maira_jax.inputs.batches import GenerationRequest, InputBatch, assemble, padded_length, reporting_request
from maira_jax.inputs.image import ImageConfig
from maira_jax.inputs.tokens import Tokenizer
from maira_jax.model import maira2, sharding
from maira_jax.model.config import Maira2Config
from maira_jax.model.int8 import Weights
from maira_jax.model.layers import Params
from maira_jax.model.sites import Site
from maira_jax.studies.study import Study
from steer.config import SteerSection
from steer.methods.intervention import Intervention
from steer.program import decode
from steer.program.decode import SteeredRows, SweepShape
from steer.program.edit import FunctionEdits, SteeringEdits

_IMAGES = 3  # a prompt of MAIRA-2 has at most these many images: current frontal and lateral, prior frontal
_ROWS = 2  # the unedited report and the edited one
_CLAMPS = 4  # features that an edit may set before a program with room for more is compiled

EditFunction = Callable[[jax.Array], jax.Array]


class WrittenText(NamedTuple):
    """A generated text without its end token, and whether it ended by itself."""

    text: str
    finished: bool


@dataclasses.dataclass
class LoadedModel:
    """A model with what it needs to read a study.

    Attributes:
      params: the parameters, `maira2.unstacked`.
      cfg: the model's configuration.
      tokenizer: the checkpoint's tokenizer.
      image_cfg: how the checkpoint's vision tower takes its images.
      length: the tokens that sequences are padded to; grows with the longest one so far.
    """

    params: Params
    cfg: Maira2Config
    tokenizer: Tokenizer
    image_cfg: ImageConfig
    length: int

    @classmethod
    def converted(cls, folder: Path, mesh: tuple[int, ...], weights: Weights, length: int) -> Self:
        """Loads the model that the stage `convert` wrote.

        Args:
          folder: the model's folder.
          mesh, weights: as `store.load`.
          length: the tokens of the longest sequence, as far as it is known.

        Raises:
          UserError: there is no such model.
        """
        params, cfg = store.load(folder, mesh, weights=weights)
        return cls._of(params, cfg, folder, length)

    @classmethod
    def checkpoint(cls, folder: Path, dtype: str) -> Self:
        """Loads a checkpoint in the Hugging Face layout; nothing is written.

        Raises:
          UserError: it is not a whole MAIRA-2 checkpoint.
        """
        cfg, kind = Maira2Config.from_dir(folder), convert.DTYPES[dtype]
        shape = sharding.chosen_mesh(
            cfg, lambda on: sharding.bytes_per_device(sharding.of_params(cfg, on, kind)), rows=1
        )
        params = convert.to_flax(folder, cfg, kind, sharding.make_mesh(shape))
        return cls._of(params, cfg, folder, length=0)

    @classmethod
    def _of(cls, params: Params, cfg: Maira2Config, folder: Path, length: int) -> Self:
        tokenizer, image_cfg = Tokenizer.from_dir(folder), ImageConfig.from_dir(folder)
        return cls(maira2.unstacked(params), cfg, tokenizer, image_cfg, padded_length(length))

    @property
    def mesh(self) -> Mesh:
        """The mesh that the model lies on."""
        return sharding.mesh_of(self.params)

    def request(self, study: Study, findings: str | None = None, grounded: bool = False) -> GenerationRequest:
        """The study's prompt with its images, and the text after it where there is one; see `reporting_request`."""
        return reporting_request(study, self.tokenizer, findings=findings, grounded=grounded)

    def _batch(self, request: GenerationRequest) -> InputBatch:
        """One row for each device along the batch, all of them the request."""
        self.length = max(self.length, padded_length(len(request.encoded)))
        rows = [request] * sharding.rows_on(self.mesh, 1)
        return assemble(rows, self.tokenizer, self.image_cfg, self.length, _IMAGES)

    def read(self, request: GenerationRequest, site: Site) -> np.ndarray:
        """The activations of one site, padding left out.

        Returns:
          float32: language [tokens, d_model], vision [images, 1 + patches, d_vision], projector [images, patches,
          d_model].
        """
        batch = self._batch(request)
        with jax.set_mesh(self.mesh):
            inputs = sharding.place_rows(self.mesh, (batch.tokens, batch.mask, batch.pixels))
            found = np.asarray(_read(self.params, self.cfg, site, *inputs)[0], np.float32)
        return found[: len(request.encoded) if site.tower == "language" else len(request.images)]

    def edits(
        self, change: Intervention | EditFunction | None, strength: float, site: Site
    ) -> SteeringEdits | FunctionEdits:
        """The rows of `write`: one that nothing edits, and one with the change at a strength."""
        width = self.cfg.vision.hidden_size if site.tower == "vision" else self.cfg.text.hidden_size
        nothing = Intervention(np.zeros(width, np.float32), 0.0)
        if change is None or isinstance(change, Intervention):
            return SteeringEdits.of([nothing, change or nothing], [0.0, strength], [site, site], _CLAMPS)
        return FunctionEdits.of(change, [0.0, strength], site, width)

    def write(
        self,
        request: GenerationRequest,
        edits: SteeringEdits | FunctionEdits,
        site: Site,
        section: SteerSection,
        n_texts: int = _ROWS,
    ) -> list[WrittenText]:
        """Writes the first `n_texts` rows of `edits`, with the most likely token at each step.

        Args:
          request: the prompt.
          edits: what is edited at `site`.
          site: the site.
          section: which tokens are edited, and the largest number of tokens that are written.
          n_texts: 1 for the unedited text alone, 2 for the edited one too.
        """
        batch = self._batch(request)
        eos = self.tokenizer.eos_id
        shape = SweepShape.of(
            site, section.edits_prompt, slots=_ROWS, max_new_tokens=section.max_new_tokens, eos_id=eos
        )
        counts = np.where(np.arange(len(batch.tokens)) == 0, n_texts, 0)
        with jax.set_mesh(self.mesh):
            edited = section.edited(batch.kinds)
            inputs = sharding.place_rows(self.mesh, (batch.tokens, batch.mask, batch.pixels, edited))
            prompts = decode.prefill(self.params, self.cfg, shape, *inputs)
            rows = SteeredRows.of(edits, section.edits_generated, counts)
            written, lengths, _ = decode.write_rows(self.params, self.cfg, shape, prompts, rows)
        ids = [row[:length] for row, length in zip(written[0], lengths[0], strict=True)][:n_texts]
        return [WrittenText(self.tokenizer.decode(row), int(row[-1]) == eos) for row in ids]


@functools.partial(jax.jit, static_argnames=("cfg", "site"))
def _read(
    params: Params, cfg: Maira2Config, site: Site, tokens: jax.Array, mask: jax.Array, pixels: jax.Array
) -> jax.Array:
    return maira2.forward(params, cfg, tokens, mask, pixels, read=(site,), logits=False).sites[site.name]

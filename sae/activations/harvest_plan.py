"""Which tokens of which study a harvest stores in which rows, known before the model runs."""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from ml_collections import ConfigDict

from maira_jax.errors import UserError
from maira_jax.inputs.batches import GenerationRequest, buckets, reporting_request
from maira_jax.inputs.readable import file_version
from maira_jax.inputs.tokens import Tokenizer, token_filter_mask
from maira_jax.run import files, processes
from maira_jax.run.progress import progress
from maira_jax.run.stages import growth
from maira_jax.studies.readers import READERS, load_studies
from maira_jax.studies.readers.registry import FilesSection
from maira_jax.studies.splits import split_of
from maira_jax.studies.study import ImageSource, Study
from sae.activations.config import HarvestSection
from sae.activations.token_rows import TokenRows

_COLLECTION = "collection"
GROWS = {_COLLECTION: growth.newest}  # what of a harvest's identity may change, since rows that are there are copied


@dataclasses.dataclass(frozen=True)
class HarvestPlan:
    """Which tokens of which study are stored in which rows.

    Attributes:
      studies: the studies, in the order of the store.
      requests: prompt, findings and images of each study.
      kept: for each study, the positions of the tokens that are stored, ascending. int64 [kept] each
      starts: first row of each study, and the number of all rows. int64 [studies + 1]
      lengths: the padded lengths in tokens, ascending.
      n_images: for each padded length, the maximum number of images of a study.
    """

    studies: Sequence[Study]
    requests: list[GenerationRequest]
    kept: list[np.ndarray]
    starts: np.ndarray
    lengths: tuple[int, ...]
    n_images: tuple[int, ...]

    @property
    def n_tokens(self) -> int:
        """Number of rows of the store."""
        return int(self.starts[-1])

    def buckets(self) -> np.ndarray:
        """For each study, the index of the smallest padded length that holds it. int64 [studies]"""
        return np.searchsorted(self.lengths, [len(request.encoded) for request in self.requests])

    def touching(self, rows: tuple[int, int]) -> range:
        """Numbers of the studies that have rows in the range from `rows[0]` to `rows[1]`."""
        first = int(np.searchsorted(self.starts, rows[0], side="right")) - 1
        return range(first, int(np.searchsorted(self.starts, rows[1], side="left")))

    def tokens(self) -> TokenRows:
        """Which token each row of the store is."""
        pairs = [(request.encoded, kept) for request, kept in zip(self.requests, self.kept, strict=True)]
        return TokenRows(
            np.repeat(np.arange(len(pairs), dtype=np.int32), np.diff(self.starts)),
            np.concatenate([kept for _, kept in pairs]).astype(np.int32),
            np.concatenate([row.ids[kept] for row, kept in pairs]),
            np.concatenate([row.kinds[kept] for row, kept in pairs]),
        )


def study_table(studies: Sequence[Study], starts: np.ndarray, held_out_fraction: float, seed: int) -> pa.Table:
    """The study table of a store; see `STUDY_SCHEMA`.

    Args:
      starts: first row of each study, and the number of all rows. int64 [studies + 1]
    """
    return pa.table(
        {
            "study_id": [study.study_id for study in studies],
            "patient_id": [study.patient_id for study in studies],
            "split": [split_of(study.patient_id, held_out_fraction, seed) for study in studies],
            "labels": [json.dumps(dict(study.labels)) for study in studies],
            "start": starts[:-1],
            "stop": starts[1:],
            "digest": [study_digest(study) for study in studies],
        }
    )


def study_digest(study: Study) -> str:
    """A hash of what a model is given of a study: its texts, and its images as pixels or as files with sizes and dates.

    Two studies with the same one have the same activations at the same site of the same model.
    """
    texts = [study.indication, study.technique, study.comparison, study.prior_report, study.findings]
    return files.digest([texts, [_version(image) for image in (study.frontal, study.lateral, study.prior_frontal)]])


def _version(image: ImageSource | None) -> list[Any]:
    if isinstance(image, np.ndarray):
        return [image.shape, hashlib.sha256(image.tobytes()).hexdigest()]
    return [] if image is None else file_version(str(image))


def studies_identity(section: ConfigDict) -> dict[str, Any]:
    """What of the studies decides a store: their section, and of files what is in them.

    Args:
      section: the configuration's section `studies`.

    Raises:
      UserError: the studies cannot be read.
    """
    if not issubclass(READERS.get(section.source), FilesSection):
        return {"studies": section.to_dict()}
    studies = processes.first_only(
        lambda: [[s.study_id, s.patient_id, dict(s.labels), study_digest(s)] for s in load_studies(section)]
    )
    # Which images can be read is seen by their files, so what is done with the others decides nothing more.
    named = {name: value for name, value in section.to_dict().items() if name != "on_error"}
    return {"studies": named, _COLLECTION: files.digest(studies)}


def make_plan(studies: Sequence[Study], tokenizer: Tokenizer, harvest: HarvestSection) -> HarvestPlan:
    """Tokenises all studies and decides what is stored where.

    Raises:
      UserError: a study has no prompt, or no token is kept.
    """
    requests = [
        reporting_request(study, tokenizer, findings=study.findings)
        for study in progress(studies, total=len(studies), unit="study", desc="tokenize")
    ]
    kept = [np.flatnonzero(token_filter_mask(request.encoded.kinds, harvest.token_filter)) for request in requests]
    starts = np.concatenate([[0], np.cumsum([len(positions) for positions in kept])]).astype(np.int64)
    if not starts[-1]:
        raise UserError(
            f"no token is kept by harvest.token_filter {harvest.token_filter!r}: choose another filter or other studies"
        )
    return HarvestPlan(studies, requests, kept, starts, *buckets(requests))

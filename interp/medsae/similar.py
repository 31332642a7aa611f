"""Similar studies: studies as sparse codes of features, and those nearest to one of them.

A study's code is each feature's largest activation over the study's tokens of `label.sections`; with one token per
study, such as an image embedding, it is the autoencoder's own code. Two studies are as similar as the cosine of their
codes: 1 for codes of the same proportions, 0 for codes that share no feature, and a sum over the features that both
have.
"""

import dataclasses
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from scipy import sparse

from interp.exemplars.study_peaks import StudyPeaks
from maira_jax.errors import UserError
from maira_jax.run import files
from maira_jax.run.columns import column

SCHEMA = pa.schema(
    [
        column("study_id", pa.string(), "the study"),
        column("patient_id", pa.string(), "the patient"),
        column("split", pa.string(), "train or held_out"),
        column("feature", pa.large_list(pa.int32()), "the features of its code"),
        column("activation", pa.large_list(pa.float32()), "their largest activations"),
    ]
)

FILE = "codes.parquet"
_STUDIES = 512  # whose activations are read together, as dense numbers


@dataclasses.dataclass(frozen=True)
class StudyCodes:
    """The codes of n studies.

    Attributes:
      study_id, patient_id, split: of each study. text [n]
      code: activations, each row's entries by feature. float32 [n, F]
      norm: the length of each code. float64 [n]
    """

    study_id: np.ndarray
    patient_id: np.ndarray
    split: np.ndarray
    code: sparse.csr_array
    norm: np.ndarray

    @classmethod
    def of(cls, studies: pa.Table, peaks: StudyPeaks) -> Self:
        """The codes of studies, rows of the store's study table, with their largest activations [n, F]."""
        starts = range(0, peaks.shape[0], _STUDIES)
        blocks = [sparse.csr_array(peaks[start : start + _STUDIES, :]) for start in starts]
        return cls._with(studies, sparse.csr_array(sparse.vstack(blocks, format="csr")))

    @classmethod
    def read(cls, folder: Path) -> Self:
        """What `write` wrote."""
        table = pq.read_table(folder / FILE)
        feature, activation = (table[name].combine_chunks() for name in ("feature", "activation"))
        code = (activation.values.to_numpy(), feature.values.to_numpy(), feature.offsets.to_numpy())
        width = int(table.schema.metadata[b"features"])
        return cls._with(table, sparse.csr_array(code, (len(table), width)))

    @classmethod
    def _with(cls, studies: pa.Table, code: sparse.csr_array) -> Self:
        ids, patients, splits = (np.array(studies[name].to_pylist()) for name in ("study_id", "patient_id", "split"))
        return cls(ids, patients, splits, code, sparse.linalg.norm(code, axis=1).astype(np.float64))

    def write(self, folder: Path) -> None:
        """Writes one row per study: its id, patient and split, and its features with their activations."""

        def lists(values: np.ndarray) -> pa.Array:
            return pa.LargeListArray.from_arrays(self.code.indptr.astype(np.int64), values)

        columns = {
            "study_id": self.study_id,
            "patient_id": self.patient_id,
            "split": self.split,
            "feature": lists(self.code.indices.astype(np.int32)),
            "activation": lists(self.code.data),
        }
        table = pa.table(columns, schema=SCHEMA).replace_schema_metadata({"features": str(self.code.shape[1])})
        with files.atomic_path(folder / FILE) as path:
            pq.write_table(table, path)

    def row(self, study_id: str) -> int:
        """The row of a study.

        Raises:
          UserError: it has none.
        """
        found = np.flatnonzero(self.study_id == study_id)
        if not len(found):
            raise UserError(f"study {study_id} has no tokens of label.sections in activations/: name another")
        return int(found[0])


def nearest(
    codes: StudyCodes, row: int, n: int, *, split: str | None = None, same_patient: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """The studies nearest to one, the nearest first; of equally near ones the earlier row.

    Args:
      codes: all studies.
      row: the one; it is not among those found.
      n: at most this many are found.
      split: only studies of this split are found; None: of all.
      same_patient: whether other studies of its own patient are found, too.

    Returns:
      Rows int64 [m], and similarities float32 [m]. A study without an active feature is near to none.

    Raises:
      UserError: the study has no active feature.
    """
    if not codes.norm[row]:
        raise UserError(f"study {codes.study_id[row]} has no active feature, so no study is similar: name another")
    found = codes.norm > 0
    found[row] = False
    if split is not None:
        found &= codes.split == split
    if not same_patient:
        found &= codes.patient_id != codes.patient_id[row]
    rows = np.flatnonzero(found)
    product = codes.code @ codes.code[[row]].toarray()[0]  # [n]
    similarity = (product[rows] / (codes.norm[rows] * codes.norm[row])).astype(np.float32)
    order = np.argsort(-similarity, kind="stable")[:n]
    return rows[order], similarity[order]


def shared_features(codes: StudyCodes, row: int, other: int) -> tuple[np.ndarray, np.ndarray]:
    """The features that are active in both studies, and what each adds to their similarity, the largest first.

    Returns:
      Features int64 [m], and float64 [m], whose sum is the similarity.
    """
    product = (codes.code[[row]].toarray()[0].astype(np.float64)) * codes.code[[other]].toarray()[0]
    features = np.flatnonzero(product)
    share = product[features] / (codes.norm[row] * codes.norm[other])
    order = np.argsort(-share, kind="stable")
    return features[order], share[order]

"""tokens.parquet: which token of which study each row of an activation store is."""

import dataclasses
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from maira_jax.inputs.tokens import SECTION_NAMES, SECTIONS, Kind
from maira_jax.run.columns import column

TOKEN_SCHEMA = pa.schema(
    [
        column("study_id", pa.string(), "the study"),
        column("position", pa.int32(), "place in the study's sequence, from 0"),
        column("token_id", pa.int32(), "in the tokenizer's vocabulary; -1 for rows that are no tokens"),
        column(
            "section",
            pa.string(),
            f"what it is part of: {', '.join(SECTIONS)}; null for rows that are no tokens",
        ),
    ]
)
# Ids of studies as text would take more memory than all else, and the study table tells them.
_READ_SCHEMA = pa.schema(
    [("position", pa.int32()), ("token_id", pa.int32()), ("section", pa.dictionary(pa.int32(), pa.string()))]
)
_NONE = -1
_GROUP_ROWS = 1 << 20  # rows that are written at once
_SECTION_OF = np.array([SECTIONS.index(SECTION_NAMES[kind]) for kind in Kind] + [_NONE])  # of each kind, and of none
_KIND_OF = np.array([list(SECTION_NAMES.values()).index(section) for section in SECTIONS] + [_NONE], np.int8)


@dataclasses.dataclass(frozen=True)
class TokenRows:
    """The token that each row of a store is; the rows of a study follow one another.

    Attributes:
      study: row of the study table, never falling. int32 [n]
      position: place in the study's sequence, ascending in a study. int32 [n]
      token_id: id in the tokenizer's vocabulary; -1 for rows that are no tokens. int32 [n]
      kind: of `Kind`; -1 for rows that are no tokens. int8 [n]
    """

    study: np.ndarray
    position: np.ndarray
    token_id: np.ndarray
    kind: np.ndarray

    def __len__(self) -> int:
        return len(self.position)

    @classmethod
    def without_tokens(cls, n: int, rows: int) -> Self:
        """Of `n` studies with `rows` rows each, none of which is a token."""
        study = np.repeat(np.arange(n, dtype=np.int32), rows)
        none = np.full(n * rows, _NONE)
        return cls(study, np.tile(np.arange(rows, dtype=np.int32), n), none.astype(np.int32), none.astype(np.int8))

    def write(self, path: Path, study_id: pa.ChunkedArray) -> None:
        """Writes `TOKEN_SCHEMA`; `study_id` names the studies, in order."""
        sections, ids = pa.array(SECTIONS), study_id.combine_chunks()
        with pq.ParquetWriter(path, TOKEN_SCHEMA) as writer:
            for start in range(0, max(len(self), 1), _GROUP_ROWS):
                rows = slice(start, start + _GROUP_ROWS)
                section = _SECTION_OF[self.kind[rows]]
                columns = [
                    ids.take(pa.array(self.study[rows])),
                    pa.array(self.position[rows]),
                    pa.array(self.token_id[rows]),
                    sections.take(pa.array(section, mask=section == _NONE)),
                ]
                writer.write_table(pa.Table.from_arrays(columns, schema=TOKEN_SCHEMA))

    @classmethod
    def read(cls, path: Path, start: np.ndarray) -> Self:
        """Reads `TOKEN_SCHEMA`.

        The last token of an image, which has a kind but no section of its own, is the one after which the image's
        positions end: text always follows an image.

        Args:
          path: the file.
          start: first row of each study. int64 [studies]

        Raises:
          pa.ArrowException, OSError: the file cannot be read.
        """
        table = pq.read_table(path, columns=_READ_SCHEMA.names, read_dictionary=["section"])
        table = table.select(_READ_SCHEMA.names).cast(_READ_SCHEMA)
        section = table["section"].unify_dictionaries().combine_chunks()
        code = section.indices.fill_null(len(section.dictionary)).to_numpy()  # [n]
        kinds = [_KIND_OF[SECTIONS.index(name)] for name in section.dictionary.to_pylist()]
        kind = np.array([*kinds, _NONE], np.int8)[code]  # [n]
        position, token_id = (table[name].to_numpy() for name in ("position", "token_id"))
        study = np.repeat(np.arange(len(start), dtype=np.int32), np.diff(np.append(start, len(kind))))
        image = kind == Kind.IMAGE
        goes_on = image[:-1] & image[1:] & (np.diff(position) == 1) & (np.diff(study) == 0)  # [n - 1]
        kind[image & ~np.append(goes_on, False)[: len(kind)]] = Kind.IMAGE_LAST
        return cls(study, position, token_id, kind)

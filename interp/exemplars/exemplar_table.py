"""exemplars.parquet: every feature's exemplars with their tokens and activations."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from interp.exemplars.corpus import Corpus
from interp.exemplars.index import SPLITS, SplitIndex
from interp.exemplars.selection import KINDS, RANDOM, Exemplars, hard_candidates, non_activating_only, select
from interp.exemplars.token_activations import token_activations
from maira_jax.inputs.tokens import SECTION_NAMES, Kind
from maira_jax.run import files
from maira_jax.run.columns import column
from sae.autoencoder import Sae

SCHEMA = pa.schema(
    [
        column("feature", pa.int32(), "the feature"),
        column("split", pa.string(), "train: shown to the explainer; held_out: scored on"),
        column("kind", pa.string(), "why it is shown: top, decile, or of a non-activating kind"),
        column("decile", pa.int8(), "0 weakest to 9 strongest; null unless kind is decile"),
        column("study_id", pa.string(), "the study"),
        column("section", pa.string(), "what its tokens are part of, as in activations/tokens.parquet"),
        column("position", pa.int32(), "of the first token in the study's sequence"),
        column("tokens", pa.list_(pa.string()), "their texts; a word boundary is a leading space"),
        column("activations", pa.list_(pa.float32()), "of the feature, on each token"),
        column("max_activation", pa.float32(), "the largest of them"),
        column("peak", pa.int16(), "which token has it; null without activation"),
    ]
)


def collect(
    path: Path,
    sae: Sae,
    corpus: Corpus,
    index: dict[str, SplitIndex],
    similar: np.ndarray,
    n_activating: dict[str, int],
    seed: int,
    batch: int,
) -> None:
    """Selects every feature's exemplars, hard ones included, and writes them to a parquet file.

    Args:
      path: the file.
      sae: autoencoder of raw activations.
      corpus: the contexts, their tokens and activations.
      index: the index of every split.
      similar: each feature's nearest other features. int32 [F, neighbours]
      n_activating: for each split, the number of activating contexts and of non-activating ones of each feature.
      seed: seed of the draw.
      batch: number of features in a row group.
    """
    candidates = hard_candidates(index, similar, corpus.contexts, n_activating, seed)
    active = token_activations(sae, corpus, candidates.feature, candidates.context).max(axis=1, initial=0.0) > 0
    hard = non_activating_only(candidates, active, n_activating)
    exemplars = Exemplars.joined([select(index, corpus.contexts, n_activating, seed), hard])
    rows = np.flatnonzero(exemplars.kind < RANDOM)
    activations = token_activations(sae, corpus, exemplars.feature[rows], exemplars.context[rows])
    write(path, exemplars, activations, corpus, sae.n_features, batch)


def write(
    path: Path, exemplars: Exemplars, activations: np.ndarray, corpus: Corpus, n_features: int, batch: int
) -> None:
    """Writes exemplars, one row group for each `batch` of features.

    Args:
      path: the parquet file.
      exemplars: sorted by feature.
      activations: one row for each exemplar of kind "top" or "decile", in order. float32 [active, L]
      corpus: the contexts and their tokens.
      n_features: number of features of the autoencoder.
      batch: number of features in a row group.
    """
    place = np.concatenate([[0], np.cumsum(exemplars.kind < RANDOM)])  # of each exemplar in `activations`
    with files.atomic_path(path) as temporary, pq.ParquetWriter(temporary, SCHEMA, compression="zstd") as writer:
        for begin in range(0, n_features, batch):
            low, high = np.searchsorted(exemplars.feature, (begin, begin + batch))
            part = exemplars.take(np.arange(low, high))
            table = _table(part, activations[place[low] : place[high]], corpus)
            writer.write_table(table, row_group_size=max(high - low, 1))


def _table(part: Exemplars, activations: np.ndarray, corpus: Corpus) -> pa.Table:
    """A table of `SCHEMA` with these exemplars; arguments as for `write`."""
    contexts = corpus.contexts
    rows, offsets = contexts.rows(part.context)
    offsets = pa.array(offsets.astype(np.int32))
    non_activating = part.kind >= RANDOM  # [m]
    values = np.zeros((len(part), activations.shape[1]), np.float32)  # [m, L]
    values[~non_activating] = activations
    inside = np.arange(values.shape[1]) < contexts.length[part.context][:, None]  # [m, L]
    pieces, study_ids = pa.array(corpus.pieces, pa.string()), corpus.studies["study_id"].combine_chunks()
    sections = pa.array([SECTION_NAMES[kind] for kind in Kind], pa.string())
    columns = [
        pa.array(part.feature),
        pa.array(SPLITS).take(pa.array(part.split)),
        pa.array(KINDS).take(pa.array(part.kind)),
        pa.array(part.decile, mask=part.decile < 0),
        study_ids.take(pa.array(contexts.study[part.context])),
        sections.take(pa.array(contexts.kind[part.context])),
        pa.array(contexts.position[part.context]),
        pa.ListArray.from_arrays(offsets, pieces.take(pa.array(corpus.token_id[rows]))),
        pa.ListArray.from_arrays(offsets, pa.array(values[inside])),
        pa.array(values.max(axis=1, initial=0)),
        pa.array(values.argmax(axis=1).astype(np.int16), mask=non_activating),
    ]
    return pa.Table.from_arrays(columns, schema=SCHEMA)


def read(path: Path, begin: int, stop: int) -> pa.Table:
    """The exemplars of the features begin to stop, in the order of the file."""
    return pq.read_table(path, filters=[("feature", ">=", begin), ("feature", "<", stop)])

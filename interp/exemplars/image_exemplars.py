"""Selects the images that each feature is explained, scored and shown by, from every image's largest activation.

Activity is a matter of rank: in each split a feature is active in the images above the median of its activations, where
that is above zero, and otherwise in those above zero. So features that are rarely active, features that are active
somewhere in every image, and controls without a natural zero are treated alike. An image's activation is the largest
over its patches.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from interp.exemplars.contexts import Contexts
from interp.exemplars.corpus import Corpus
from interp.exemplars.exemplar_table import SCHEMA
from interp.exemplars.index import SPLITS
from interp.exemplars.index_pass.running_index import hash_uniform
from interp.exemplars.selection import DECILE, KINDS, N_DECILES, RANDOM, TOP, Exemplars
from interp.exemplars.study_peaks import StudyPeaks
from interp.exemplars.token_activations import token_activations
from maira_jax.inputs.tokens import SECTION_NAMES, Kind
from maira_jax.run import files
from maira_jax.run.progress import progress
from sae.autoencoder import Sae

# Features whose images are sorted together; bounds the dense [images, features] matrices.
_FEATURES = 256
# Activations of patches that are computed together, in float32 elements (512 MiB).
_MAX_ELEMENTS = 1 << 27


def select(
    peaks: StudyPeaks, contexts: Contexts, held_out: np.ndarray, n_top: int, n_activating: Mapping[str, int], seed: int
) -> tuple[Exemplars, np.ndarray]:
    """Draws the exemplars of every feature.

    Args:
      peaks: each study's largest activations. [n_studies, F]
      contexts: the images.
      held_out: which studies are held out. bool [n_studies]
      n_top: number of strongest images of each feature and split.
      n_activating: for each split, the number of active images to draw, the same number from each decile by rank; as
        many inactive ones are drawn.
      seed: seed of the draw.

    Returns:
      The strongest images, images by decile and inactive ones, of features that are active anywhere in the split; and
      the activation of each exemplar. float32 [m]
    """
    parts, values = [], []
    for begin in progress(range(0, peaks.shape[1], _FEATURES), unit="block", desc="interpret: images"):
        activation = peaks[:, begin : begin + _FEATURES][contexts.study]  # [images, block]
        found = []
        for split, name in enumerate(SPLITS):
            images = np.flatnonzero(held_out[contexts.study] == bool(split))
            drawn = _of_split(activation[images], images, begin, n_top, n_activating[name], seed)
            for kind, (feature, decile, context) in drawn.items():
                n = len(feature)
                columns = (feature.astype(np.int32), np.full(n, split, np.int8), np.full(n, kind, np.int8))
                found.append(Exemplars(*columns, decile.astype(np.int8), context.astype(np.int64)))
        parts.append(Exemplars.joined(found))
        values.append(activation[parts[-1].context, parts[-1].feature - begin])
    return Exemplars.joined(parts), np.concatenate(values)


def _of_split(
    activation: np.ndarray, images: np.ndarray, begin: int, n_top: int, n_activating: int, seed: int
) -> dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """What is drawn of one split for a block of features.

    Args:
      activation: of each feature in each image. float32 [n, block]
      images: the images' context numbers. int64 [n]
      begin: the first feature of the block.
      n_top, n_activating, seed: as for `select`.

    Returns:
      For each kind the features, deciles and context numbers. [m] each
    """
    block = begin + np.arange(activation.shape[1])
    active = activation > np.maximum(np.median(activation, axis=0), 0)  # [n, block]
    n_active = active.sum(0)  # [block]
    priority = hash_uniform(images[:, None], block[None], seed)  # [n, block]

    feature, image = np.nonzero(active.T)  # [active]
    strongest = np.lexsort((-activation[image, feature], feature))
    feature, image = feature[strongest], image[strongest]
    rank = _place(feature)
    top = rank < n_top

    decile = N_DECILES - 1 - rank * N_DECILES // n_active[feature]
    group = feature * N_DECILES + decile
    by_group = np.lexsort((-priority[image, feature], group))
    kept = by_group[_place(group[by_group]) < n_activating // N_DECILES]

    count = min(n_activating, len(images))
    drawn = np.argpartition(np.where(active, 2, priority), count - 1, axis=0)[:count]  # [count, block]
    drawn_feature, place = np.nonzero((~np.take_along_axis(active, drawn, axis=0) & (n_active > 0)).T)
    return {
        TOP: (block[feature[top]], np.full(top.sum(), -1), images[image[top]]),
        DECILE: (block[feature[kept]], decile[kept], images[image[kept]]),
        RANDOM: (block[drawn_feature], np.full(len(place), -1), images[drawn[place, drawn_feature]]),
    }


def _place(group: np.ndarray) -> np.ndarray:
    """The place of each element among those of its group, which follow each other. int64 [n]"""
    first = np.flatnonzero(np.diff(group, prepend=-1))
    return np.arange(len(group)) - np.repeat(first, np.diff(np.append(first, len(group))))


def collect(
    path: Path,
    sae: Sae,
    corpus: Corpus,
    peaks: StudyPeaks,
    n_top: int,
    n_activating: Mapping[str, int],
    seed: int,
    batch: int,
) -> None:
    """Selects every feature's exemplars and writes them to a parquet file of `interp.exemplars.exemplar_table.SCHEMA`.

    The column `activations` holds those of all patches of an active image, and nothing of an inactive one.

    Args:
      path: the file.
      sae: autoencoder of raw activations.
      corpus: the images and their activations.
      peaks, n_top, n_activating, seed: as for `select`.
      batch: number of features in a row group.
    """
    exemplars, value = select(peaks, corpus.contexts, corpus.held_out, n_top, n_activating, seed)
    begins = np.arange(0, sae.n_features, batch)
    bounds = np.searchsorted(exemplars.feature, np.append(begins, sae.n_features))  # [batches + 1]
    most = max(int(np.diff(bounds).max(initial=1)), 1) * int(corpus.contexts.length.max(initial=1))
    together = max(_MAX_ELEMENTS // most, 1)  # batches
    with files.atomic_path(path) as temporary, pq.ParquetWriter(temporary, SCHEMA, compression="zstd") as writer:
        for first in range(0, len(begins), together):
            ends = bounds[first : first + together + 1]
            rows = np.arange(ends[0], ends[-1])
            active = rows[exemplars.kind[rows] < RANDOM]
            patches = token_activations(sae, corpus, exemplars.feature[active], exemplars.context[active])
            for low, high in zip(ends[:-1], ends[1:], strict=True):
                own = patches[slice(*np.searchsorted(active, (low, high)))]
                table = _table(exemplars.take(np.arange(low, high)), value[low:high], own, corpus)
                writer.write_table(table, row_group_size=max(high - low, 1))


def _table(part: Exemplars, value: np.ndarray, patches: np.ndarray, corpus: Corpus) -> pa.Table:
    """A table of exemplars.

    Args:
      part: m exemplars.
      value: the activation of each. float32 [m]
      patches: of the active ones, the activation of each patch. float32 [active, L]
      corpus: the images.
    """
    active = part.kind < RANDOM  # [m]
    length = corpus.contexts.length[part.context]  # [m]
    inside = np.arange(patches.shape[1]) < length[active][:, None]  # [active, L]
    offsets = np.concatenate([[0], np.cumsum(np.where(active, length, 0))])
    peak = np.zeros(len(part), np.int16)
    peak[active] = patches.argmax(1)
    study_ids = corpus.studies["study_id"].combine_chunks()
    columns = [
        pa.array(part.feature),
        pa.array(SPLITS).take(pa.array(part.split)),
        pa.array(KINDS).take(pa.array(part.kind)),
        pa.array(part.decile, mask=part.decile < 0),
        study_ids.take(pa.array(corpus.contexts.study[part.context])),
        pa.array([SECTION_NAMES[Kind.IMAGE]] * len(part), pa.string()),
        pa.array(corpus.contexts.position[part.context]),
        pa.array([[]] * len(part), pa.list_(pa.string())),
        pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), pa.array(patches[inside])),
        pa.array(value.astype(np.float32)),
        pa.array(peak, mask=~active),
    ]
    return pa.Table.from_arrays(columns, schema=SCHEMA)

"""One vector per study: what stands for its tokens where features are compared with its labels."""

import dataclasses
import functools
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from interp.exemplars.index_pass.blocks import read_ahead
from interp.exemplars.index_pass.shared_sae import SharedSae, by_features, can_be_shared, everywhere, features
from interp.exemplars.study_peaks import StudyPeaks
from maira_jax.errors import UserError
from maira_jax.inputs.tokens import SECTION_NAMES, Kind
from maira_jax.run import files, processes, storage
from maira_jax.run.progress import progress
from sae.activations.store import ActivationStore
from sae.autoencoder import Params, Sae

FEATURES = "features"  # the basis of the autoencoder
# Tokens encoded at a time: enough to fill the device, and few enough that [tokens, features] stays small.
_BLOCK_TOKENS = 4096
_READ_ROWS = 1 << 16  # rows of the store from which the wanted ones are read together
_BEHIND = 2  # blocks whose results are not waited for


@dataclasses.dataclass(frozen=True)
class StudyVectors:
    """What represents each of n studies.

    Attributes:
      study: rows of the store's study table: the studies with a token of the sections. int64 [n]
      embedding: the mean activation of those tokens. float32 [n, d_model]
      activation: of each basis, each neuron's largest activation on those tokens: under `FEATURES` that of the
        autoencoder's features, and of the others the largest product with each direction. float32 [n, neurons] each
      is_single: whether each study has one token of the sections, so that its embedding is that token's activation.
    """

    study: np.ndarray
    embedding: np.ndarray
    activation: dict[str, StudyPeaks]
    is_single: bool


def study_vectors(
    sae: Sae,
    store: ActivationStore,
    sections: tuple[str, ...],
    folder: Path,
    devices: Sequence[jax.Device],
    directions: Mapping[str, np.ndarray],
) -> StudyVectors | None:
    """Represents each study by one vector, in one pass over the store, in which all processes of the run take part.

    Args:
      sae: autoencoder of raw activations.
      store: the activations.
      sections: tokens of these sections are counted; those of users' own arrays, which have no section, always are.
      folder: where each process writes the vectors of its studies.
      devices: they share the features.
      directions: other bases than the features. float32 [d_model, neurons] each

    Returns:
      The vectors; None on processes that are not the first.

    Raises:
      UserError: the store has no tokens of the sections.
    """
    kinds = [int(kind) for kind in Kind if SECTION_NAMES[kind] in sections]
    tokens = store.tokens
    rows = np.flatnonzero(np.isin(tokens.kind, kinds) | (tokens.kind < 0))
    if not len(rows):
        raise UserError(f"{store.directory} has no tokens of the sections {', '.join(sections)}: name others")
    study, number = np.unique(tokens.study[rows], return_inverse=True)
    share = len(rows) * np.arange(processes.count()) // processes.count()  # rows
    cuts = [*number[share].tolist(), len(study)]  # no study is divided
    begin, stop = cuts[processes.index() : processes.index() + 2]
    folder.mkdir(exist_ok=True)
    if begin < stop:
        _write_vectors(folder, sae, store, rows, number, range(begin, stop), devices, directions)
    storage.send(folder)
    processes.barrier()
    if not processes.is_first():
        return None
    storage.fetch(folder)
    parts = sorted(set(cuts[:-1]))
    embedding = np.concatenate([np.load(_path(folder, "embedding", begin)) for begin in parts])
    widths = {FEATURES: sae.n_features} | {basis: own.shape[1] for basis, own in directions.items()}
    activation = {
        basis: StudyPeaks((len(study), width), [(_path(folder, basis, begin), begin) for begin in parts], -np.inf)
        for basis, width in widths.items()
    }
    return StudyVectors(study, embedding, activation, len(study) == len(rows))


def _write_vectors(
    folder: Path,
    sae: Sae,
    store: ActivationStore,
    rows: np.ndarray,
    number: np.ndarray,
    own: range,
    devices: Sequence[jax.Device],
    directions: Mapping[str, np.ndarray],
) -> None:
    """Writes the arrays of the studies `own`, of those that the store's rows `rows [n]` belong to, `number [n]`.

    On disk, because the largest activations of features grow with studies x features.
    """
    shape = {FEATURES: sae.n_features} | {basis: each.shape[1] for basis, each in directions.items()}
    paths = {basis: _path(folder, basis, own.start) for basis in shape}
    begins = {
        basis: files.array_on_disk(path, np.float32, (len(own), shape[basis])).offset for basis, path in paths.items()
    }
    total, n_seen = np.zeros((len(own), sae.d_model)), 0
    shared = SharedSae.of(sae, devices)
    sent_directions = {
        basis: jax.device_put(
            each,
            by_features(shared.mesh, 2) if can_be_shared(each.shape[1], shared.mesh.size) else everywhere(shared.mesh),
        )
        for basis, each in directions.items()
    }

    def look(sent: tuple[_StudyTokens, dict[str, jax.Array]]) -> None:
        nonlocal n_seen
        part, largest = sent
        known = max(n_seen - part.studies.start, 0)  # studies of which the block before had tokens
        for basis, found in largest.items():
            new = np.asarray(found)[part.places]
            # Written, not mapped: what is mapped counts as memory of this process.
            with paths[basis].open("r+b") as file:
                place = begins[basis] + part.studies.start * new[:1].nbytes
                file.seek(place)
                held = np.fromfile(file, np.float32, new[:known].size).reshape(new[:known].shape)
                file.seek(place)
                file.write(np.maximum(held, new[:known]).tobytes())
                file.write(np.ascontiguousarray(new[known:]).data)
        n_seen = part.studies.stop

    waiting: deque[tuple[_StudyTokens, dict[str, jax.Array]]] = deque()
    for part in read_ahead(_blocks(store, rows, number, own)):
        total[part.studies] += part.total[part.places]
        n_slots = 1 << (len(part.total) - 1).bit_length()  # few sizes, so that few programs compile
        largest = _largest(shared.params, shared.threshold, sent_directions, part.x, part.slot, sae.top_k, n_slots)
        waiting.append((part, largest))
        if len(waiting) > _BEHIND:
            look(waiting.popleft())
    for sent in waiting:
        look(sent)
    embedding = files.array_on_disk(_path(folder, "embedding", own.start), np.float32, total.shape)
    embedding[:] = np.divide(total, np.bincount(number)[own.start : own.stop, None], out=total)
    embedding.flush()  # for other hosts that share the disk


def _path(folder: Path, name: str, begin: int) -> Path:
    """Where the arrays of the studies from `begin` on are."""
    return folder / f"{name.replace(' ', '-')}-{begin:09d}.npy"


@dataclasses.dataclass(frozen=True)
class _StudyTokens:
    """A block of tokens of consecutive studies, of which the process has some.

    Attributes:
      studies: those that it has, counted from its first one.
      places: their places in the block.
      total: the sum of each study's activations in the block. float64 [studies, d_model]
      x: activations, zeros in padding. float32 [_BLOCK_TOKENS, d_model]
      slot: the place of each token's study among them; out of range in padding. int32 [_BLOCK_TOKENS]
    """

    studies: slice
    places: slice
    total: np.ndarray
    x: np.ndarray
    slot: np.ndarray


def _blocks(store: ActivationStore, rows: np.ndarray, number: np.ndarray, chosen: range) -> Iterator[_StudyTokens]:
    """Those blocks of the store's rows `rows [n]` that have tokens of the studies `chosen`.

    The rows belong to the studies `number [n]`, never falling and without gaps. A block is the same for every share of
    the studies, also with tokens of others, and so is what a study's vector is computed from.
    """
    low, high = np.searchsorted(number, (chosen.start, chosen.stop)).tolist()
    for begin in progress(range(low - low % _BLOCK_TOKENS, high, _BLOCK_TOKENS), unit="block", desc="label"):
        wanted, own = rows[begin : begin + _BLOCK_TOKENS], number[begin : begin + _BLOCK_TOKENS]
        x = np.zeros((_BLOCK_TOKENS, store.d_model), np.float32)
        for low in range(int(wanted[0]), int(wanted[-1]) + 1, _READ_ROWS):
            here = np.flatnonzero((wanted >= low) & (wanted < low + _READ_ROWS))
            if len(here):
                start, stop = int(wanted[here[0]]), int(wanted[here[-1]]) + 1
                x[here] = store.read(start, stop)[wanted[here] - start]
        slot = np.full(_BLOCK_TOKENS, _BLOCK_TOKENS, np.int32)
        slot[: len(own)] = own - own[0]
        first = np.flatnonzero(np.diff(own, prepend=-1))  # each study's first token
        total = np.add.reduceat(x[: len(own)], first, axis=0, dtype=np.float64)
        inside = max(own[0], chosen.start), min(own[-1] + 1, chosen.stop)
        studies, places = (slice(*(end - origin for end in inside)) for origin in (chosen.start, own[0]))
        yield _StudyTokens(studies, places, total, x, slot)


@functools.partial(jax.jit, static_argnames=("top_k", "n_slots"))
def _largest(
    params: Params,
    threshold: jax.Array,
    directions: dict[str, jax.Array],
    x: jax.Array,
    slot: jax.Array,
    top_k: int | None,
    n_slots: int,
) -> dict[str, jax.Array]:
    """The largest activations of each study of a block of T tokens.

    Args:
      params, threshold, top_k: the autoencoder, as `interp.exemplars.index_pass.shared_sae.features` takes it.
      directions: of each basis, one per column. [d_model, neurons] each
      x: activations. [T, d_model]
      slot: the place of each token's study in the block, never falling; `n_slots` or more in padding. int32 [T]
      n_slots: number of places.

    Returns:
      Each study's largest activations of the neurons of each basis, features included. [n_slots, neurons] each
    """
    largest = functools.partial(jax.ops.segment_max, segment_ids=slot, num_segments=n_slots, indices_are_sorted=True)
    product = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
    along = {basis: largest(product(x, columns)) for basis, columns in directions.items()}
    return along | {FEATURES: largest(features(params, x, threshold, top_k))}

"""A Hugging Face checkpoint as it is read: every tensor once, in the order of the files, checked on the way."""

import hashlib
import math
import os
from collections import defaultdict, deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import numpy as np
from safetensors import SafetensorError, safe_open

from maira_jax.checkpoint import digests, shards
from maira_jax.checkpoint.layout import Entry, published_name
from maira_jax.checkpoint.tensor_check import FoundTensor, listed, refuse_others
from maira_jax.errors import UserError
from maira_jax.run import files

_PIECE = 1 << 24  # bytes that are read, then hashed, at a time
_BLOCK = 1 << 18  # values that are checked together, so that they stay in the cache
_AHEAD = 1  # tensors that are read while one is worked on


class TensorSource:
    """The tensors of a checkpoint, in any shards and under the names of any version of transformers.

    Attributes:
      directory: the checkpoint's folder.
      parts: file name -> its tensors, in the order of their bytes.
      dtype: the type of all tensors.
      nbytes: the size of all tensors together.
      known: what `digests.known_digests` found.
      digests: SHA-256 of the files that were read to their end.
    """

    def __init__(self, directory: Path, table: list[Entry], model: str = "MAIRA-2"):
        """Reads the files' headers.

        Args:
          directory: the checkpoint's folder.
          table: the model's tensors.
          model: the model's name, for messages.

        Raises:
          UserError: a file is missing or damaged, or the tensors are not exactly those of the table, with one
            floating-point type; names each that is not.
        """
        self.directory = directory
        self.known = digests.known_digests(directory)
        self.digests: dict[str, str] = {}
        names, weight_map = _shard_names(directory)
        found = [tensor for name in names for tensor in _tensors(directory / name)]
        by_name: dict[str, FoundTensor] = {}
        twice = [tensor.name for tensor in found if by_name.setdefault(published_name(tensor.name), tensor) != tensor]
        counts: dict[str, int] = defaultdict(int)
        for tensor in found:
            counts[tensor.code] += math.prod(tensor.shape)
        code = max(counts, key=lambda code: counts[code], default="")
        refuse_others(directory, model, table, by_name, twice, code)
        if weight_map is not None:
            _check_index(directory, weight_map, found)
        self.dtype = shards.TYPES[code]
        entry_of = {entry.name: entry for entry in table}
        self.parts: dict[str, list[Entry]] = {name: [] for name in names}
        for name, tensor in by_name.items():
            self.parts[tensor.file].append(entry_of[name])
        self.nbytes = sum(math.prod(entry.shape) for entry in table) * self.dtype.itemsize

    def read(self, shard: str) -> Iterator[tuple[Entry, np.ndarray]]:
        """The tensors of one file. Reading, hashing and the caller's work overlap.

        Raises:
          UserError: the file is damaged.
        """
        path = self.directory / shard
        digest = hashlib.sha256()

        def take(entry: Entry) -> np.ndarray:
            tensor = np.empty(entry.shape, self.dtype)
            data = tensor.reshape(-1).view(np.uint8).data
            hashing: Future[None] | None = None
            for start in range(0, len(data), _PIECE):
                piece = data[start : start + _PIECE]
                _fill(file, piece, path)
                _forget(file)
                hashing = hasher.submit(digest.update, piece)
            if hashing is not None:  # so that no more than one tensor waits to be hashed
                hashing.result()
            return tensor

        with path.open("rb", buffering=0) as file, ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as hasher:
            length = file.read(8)
            digest.update(length + file.read(int.from_bytes(length, "little")))
            ahead: deque[tuple[Entry, Future[np.ndarray]]] = deque()
            for entry in self.parts[shard]:
                ahead.append((entry, reader.submit(take, entry)))
                if len(ahead) > _AHEAD:
                    yield self._checked(path, *ahead.popleft())
            while ahead:
                yield self._checked(path, *ahead.popleft())
            self.digests[shard] = digest.hexdigest()
        digests.check_digest(path, self.digests[shard], self.known)

    def _checked(self, path: Path, entry: Entry, reading: Future[np.ndarray]) -> tuple[Entry, np.ndarray]:
        tensor = reading.result()
        largest, infinity = _largest(tensor)
        if largest >= infinity:
            raise UserError(
                f"{path} is damaged: {entry.name} holds a value that is not finite: download the file again"
            )
        if not largest and entry.kind == "linear" and path.name not in self.known:
            raise UserError(
                f"{path} is damaged: {entry.name} holds only zeros, as in an unfinished download: download the file "
                f"again, or, if it is meant to be so, put its digest into its folder (sha256sum *.safetensors > "
                f"{digests.DIGESTS})"
            )
        return entry, tensor


def _largest(tensor: np.ndarray) -> tuple[int, int]:
    """The largest magnitude in a tensor and that of infinity, as integers; NaN is above infinity."""
    unsigned = np.dtype(f"u{tensor.dtype.itemsize}")
    # Without their sign bit, floating-point numbers are ordered as integers.
    magnitude, bits = unsigned.type(np.iinfo(unsigned).max >> 1), tensor.reshape(-1).view(unsigned)
    parts = (bits[start : start + _BLOCK] & magnitude for start in range(0, len(bits), _BLOCK))
    return max(int(part.max()) for part in parts), int(np.array(np.inf, tensor.dtype).view(unsigned))


def _shard_names(directory: Path) -> tuple[list[str], dict[str, str] | None]:
    """The files with tensors, and the index's map from tensor to file, if there is an index."""
    if (directory / shards.INDEX).is_file():
        index = files.read_json(directory / shards.INDEX)
        weight_map = index.get("weight_map") if isinstance(index, dict) else None
        names = list(weight_map.values()) if isinstance(weight_map, dict) else []
        if not names or not all(isinstance(name, str) and Path(name).name == name for name in names):
            raise UserError(f"{directory / shards.INDEX} has no map from tensors to files: download it again")
        return sorted(set(names)), weight_map
    if (directory / shards.SINGLE).is_file():
        return [shards.SINGLE], None
    raise UserError(f"{directory} has neither {shards.INDEX} nor {shards.SINGLE}: give a checkpoint's folder")


def _tensors(path: Path) -> list[FoundTensor]:
    """What the header of a file says, in the order of the bytes; the file is as long as the header asks for."""
    try:
        with safe_open(path, framework="numpy") as file:
            slices = [(name, file.get_slice(name)) for name in file.offset_keys()]
            return [FoundTensor(path.name, name, part.get_dtype(), tuple(part.get_shape())) for name, part in slices]
    except FileNotFoundError as error:
        raise UserError(f"{path}, named in {shards.INDEX}, is missing: download the checkpoint again") from error
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path} is truncated or damaged ({error}): download the file again") from error


def _check_index(directory: Path, weight_map: dict[str, str], found: list[FoundTensor]) -> None:
    there = {tensor.name: tensor.file for tensor in found}
    wrong = [name for name in there.keys() | weight_map.keys() if there.get(name) != weight_map.get(name)]
    if wrong:
        raise UserError(
            f"{directory / shards.INDEX} does not say where these tensors are: {listed(sorted(wrong))}; "
            "download the checkpoint again"
        )


def _forget(file: BinaryIO) -> None:
    """Drops what was read from the page cache: nobody reads it again, and making room later costs more than reading."""
    if hasattr(os, "posix_fadvise"):  # not on macOS
        os.posix_fadvise(file.fileno(), 0, file.tell(), os.POSIX_FADV_DONTNEED)


def _fill(file: BinaryIO, piece: memoryview, path: Path) -> None:
    """Reads exactly `piece`."""
    while len(piece):
        try:
            n = file.readinto(piece)  # type: ignore[attr-defined]
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror}): copy or download the file again") from error
        if not n:
            raise UserError(f"{path} became shorter while it was read: download the file again")
        piece = piece[n:]

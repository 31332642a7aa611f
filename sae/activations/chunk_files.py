"""Chunks of an activation store whose files lie on this host, read into memory that is used again.

TensorStore writes these files, and reads them from buckets. It gives every chunk new memory, decodes it into other
memory and copies from there what is asked for, which took two thirds of the time of reading batches. Here a chunk is
copied out of the file once, into memory that stays in the processor's cache, is checked there, and its rows are copied
to where they belong.

The format is zarr's (version 3, `sharding_indexed`): a shard's file holds the chunks, each followed by its CRC-32C, and
at its end an index of their places and sizes, followed by its own CRC-32C.
"""

import os
import struct
from pathlib import Path

import google_crc32c
import numpy as np

_CHECKSUM_BYTES = 4
_ENTRY = struct.Struct("<QQ")  # of a shard's index: where a chunk begins, and its size with its checksum
_MISSING = 2**64 - 1


def is_fast() -> bool:
    """Whether checksums are taken by compiled code, as they are where google-crc32c has a wheel."""
    return google_crc32c.implementation == "c"


class ChunkFiles:
    """The chunks of a store's array.

    Args:
      folder: the array's folder.
      chunk_bytes: size of a chunk without its checksum.
      chunks_per_shard: number of chunks in a file.
    """

    def __init__(self, folder: Path, chunk_bytes: int, chunks_per_shard: int):
        self._folder, self._chunk_bytes, self._per_shard = folder, chunk_bytes, chunks_per_shard

    def new_memory(self) -> np.ndarray:
        """Memory for `read`. uint8 [chunk and checksum]"""
        return np.empty(self._chunk_bytes + _CHECKSUM_BYTES, np.uint8)

    def read(self, chunk: int, memory: np.ndarray) -> np.ndarray:
        """Reads a chunk.

        Args:
          chunk: its number in the store.
          memory: what `new_memory` has given, for one thread at a time.

        Returns:
          The chunk's bytes, a part of `memory`. uint8 [chunk_bytes]

        Raises:
          OSError: the file cannot be read.
          ValueError: the chunk is missing or damaged.
        """
        shard, place = divmod(chunk, self._per_shard)
        path = f"{self._folder}/c/{shard}/0"
        file = os.open(path, os.O_RDONLY)
        try:
            begin, size = self._place(path, file, place)
            if size != len(memory) or not _fill(memory, file, begin):
                raise ValueError(f"chunk {place} of {path} is cut off")
        finally:
            os.close(file)
        content = memory[:-_CHECKSUM_BYTES]
        if not _matches(content, memory[-_CHECKSUM_BYTES:].tobytes()):
            raise ValueError(f"chunk {place} of {path} does not match its CRC-32C checksum")
        return content

    def _place(self, path: str, file: int, chunk: int) -> tuple[int, int]:
        """Where a chunk begins in its shard's file, and its size, checksum included."""
        length = _ENTRY.size * self._per_shard + _CHECKSUM_BYTES
        index = os.pread(file, length, max(os.fstat(file).st_size - length, 0))
        if len(index) != length or not _matches(index[:-_CHECKSUM_BYTES], index[-_CHECKSUM_BYTES:]):
            raise ValueError(f"the index of {path} does not match its CRC-32C checksum")
        begin, size = _ENTRY.unpack_from(index, _ENTRY.size * chunk)
        if begin == size == _MISSING:
            raise ValueError(f"chunk {chunk} of {path} is missing")
        return begin, size


def _fill(memory: np.ndarray, file: int, begin: int) -> bool:
    """Reads a file from a place on until `memory` is full; a read may give less than is asked, as on a network."""
    done = 0
    while done < len(memory):
        read = os.preadv(file, [memory.data[done:]], begin + done)
        if not read:
            return False
        done += read
    return True


def _matches(content: bytes | np.ndarray, checksum: bytes) -> bool:
    if isinstance(content, np.ndarray):
        content = content.view()
        content.flags.writeable = False  # or no checksum would be taken of it
    return google_crc32c.value(content) == int.from_bytes(checksum, "little")

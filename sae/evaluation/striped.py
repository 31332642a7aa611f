"""What an evaluation reads: an autoencoder and held-out activations, both on the devices of a mesh."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.sharding import Mesh

from sae import autoencoder, mesh
from sae.autoencoder import Sae

# Entries of a batch's matrix of pre-activations on each device: 1 GiB of float32.
_ENTRIES = 2**28
# Rows of a batch on each device are a multiple of this number, so that sums over tokens can be taken pairwise.
_ROWS = 256
_SUMMANDS = 16
# Bytes of activations that stay on a device whose memory is not known.
_KEPT_BYTES = 2**30

_PLACES = {"W_enc": (None, mesh.FEATURE), "b_enc": (mesh.FEATURE,), "W_dec": (mesh.FEATURE, None), "b_dec": ()}


@struct.dataclass
class StripedSae:
    """An autoencoder of raw activations whose arrays lie on a mesh, its features striped; see `sae.mesh`.

    Attributes:
      params: the four arrays, float32, their features along the feature axis and otherwise whole.
      on: the mesh; static.
      group_sizes: features of each nested group; static.
      top_k: the maximum number of kept features of a token; None: all that are above the threshold. Static.
    """

    params: autoencoder.Params
    on: Mesh = struct.field(pytree_node=False)
    group_sizes: tuple[int, ...] = struct.field(pytree_node=False)
    top_k: int | None = struct.field(pytree_node=False, default=None)

    @classmethod
    def of(cls, sae: Sae) -> "StripedSae":
        """An autoencoder on one device of this process."""
        on = Mesh(np.asarray(jax.local_devices()[:1]).reshape(1, 1), (mesh.DATA, mesh.FEATURE))
        return cls.placed(sae.params, on, sae.group_sizes, sae.top_k)

    @classmethod
    def placed(
        cls, params: autoencoder.Params, on: Mesh, group_sizes: tuple[int, ...], top_k: int | None = None
    ) -> "StripedSae":
        """An autoencoder whose striped arrays are moved to their places on a mesh."""
        there = {name: jax.device_put(value, mesh.sharding(on, *_PLACES[name])) for name, value in params.items()}
        return cls(there, on, group_sizes, top_k)

    @property
    def on_one_cpu(self) -> bool:
        """Whether the mesh is one CPU, which counts in other ways."""
        return self.on.size == 1 and self.on.devices.flat[0].platform == "cpu"

    @property
    def n_features(self) -> int:
        """Number of features, over all groups."""
        return int(self.params["W_enc"].shape[1])


class TokenBatch(NamedTuple):
    """Held-out activations on the devices of a mesh.

    Attributes:
      x: in the dtype in which they are stored; rows lie along the data axis. [B, d]
      used: number of rows that hold a token; the others come after them.
    """

    x: jax.Array
    used: int | jax.Array

    def holds_token(self) -> jax.Array:
        """Which rows hold a token. bool [B]"""
        return jnp.arange(len(self.x)) < self.used


class HeldOutTokens:
    """Activations in batches of one shape, read as often as they are iterated over.

    A single batch stays on the devices; of several, the first ones do, as far as half of the free memory holds them.

    Args:
      on: the mesh.
      n: number of tokens.
      read: reads a part of every batch: (first token, tokens in a batch, part) -> arrays [at most the part's size, d].
      largest: maximum number of tokens in a batch.
    """

    def __init__(self, on: Mesh, n: int, read: Callable[[int, int, slice], Iterator[np.ndarray]], largest: int):
        self.n, self.n_batches, self._read = n, -(-n // largest), read
        unit = _ROWS * on.shape[mesh.DATA]
        self._size = -(-n // (max(self.n_batches, 1) * unit)) * unit
        self._place = mesh.sharding(on, mesh.DATA, None)
        self._part = mesh.local_part(self._place, (self._size, 1), 0)
        self._kept: list[TokenBatch] = []
        self._room: float = _free_bytes(on) / 2 if self.n_batches > 1 else float("inf")

    def __iter__(self) -> Iterator[TokenBatch]:
        yield from self._kept
        if len(self._kept) == self.n_batches:
            return
        keeps, first = True, len(self._kept) * self._size
        for rows in self._read(first, self._size, self._part):
            batch = TokenBatch(self._placed(rows), min(self._size, self.n - first))
            first += self._size
            keeps = keeps and batch.x.nbytes <= self._room
            if keeps:
                self._kept.append(batch)
                self._room -= batch.x.nbytes
            yield batch

    def _placed(self, rows: np.ndarray) -> jax.Array:
        size, d = self._part.stop - self._part.start, rows.shape[1]
        padded = np.pad(rows, ((0, size - len(rows)), (0, 0))) if len(rows) < size else rows
        return jax.make_array_from_process_local_data(self._place, padded, (self._size, d))


def in_memory(on: Mesh, x: np.ndarray, largest: int) -> HeldOutTokens:
    """Activations `x [n, d]` in batches of at most `largest` tokens."""

    def read(first: int, size: int, part: slice) -> Iterator[np.ndarray]:
        return (x[i : i + size][part] for i in range(first, len(x), size))

    return HeldOutTokens(on, len(x), read, largest)


def largest_batch(on: Mesh, n_features: int) -> int:
    """Tokens whose pre-activations are computed at once on a mesh."""
    return max(_ENTRIES * on.size // n_features, 1)


def _free_bytes(on: Mesh) -> int:
    stats = on.local_devices[0].memory_stats() or {}
    free = stats.get("bytes_limit", _KEPT_BYTES) - stats.get("bytes_in_use", 0)
    return free * on.shape[mesh.DATA]  # a batch is the same for all devices along the features


def token_sum(values: jax.Array) -> jax.Array:
    """The sum of `values [B, ...]` over the tokens, of sums of 16: its rounding does not grow with their number."""
    while values.shape[0] % _SUMMANDS == 0:
        values = values.reshape(-1, _SUMMANDS, *values.shape[1:]).sum(1)
    return values.sum(0)

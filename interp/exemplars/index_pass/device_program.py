"""The compiled program of the pass, which adds one block to its split's index.

It holds no collective: every device encodes the whole block for its own features. (Only an autoencoder that keeps a
number of features per token counts them over all devices.)
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from interp.exemplars.index_pass import by_entries, by_tiles
from interp.exemplars.index_pass.blocks import STUDIES_PER_BLOCK, ContextBlock, max_contexts
from interp.exemplars.index_pass.running_index import IndexConfig, RunningIndex
from interp.exemplars.index_pass.shared_sae import FEATURES, by_features, everywhere, features
from sae.autoencoder import Params, Sae
from sae.kernels import kept_entries

# Features of a tile: with a block of 4,096 tokens, 16 MiB of a TPU's 128 MiB of vector memory.
_TILE = {"tpu": 1024}


@dataclasses.dataclass(frozen=True)
class EntryList:
    """The route of a CPU: by a list of at most `capacity` active entries on each device."""

    capacity: int


Route = EntryList | by_tiles.Tiles


class PassState(NamedTuple):
    """What the devices hold of a split.

    Attributes:
      running: the index so far.
      n_blocks: number of blocks that each device has added. int32 [devices]
    """

    running: RunningIndex
    n_blocks: jax.Array

    @classmethod
    def empty(cls, mesh: Mesh, cfg: IndexConfig, n_features: int) -> "PassState":
        """The state before the first block."""
        return cls(RunningIndex.empty(cfg, n_features), jnp.zeros(mesh.size, jnp.int32))


class AddedBlock(NamedTuple):
    """What a block gives besides the new index.

    Attributes:
      study_peak: largest activations of the block's studies; 0 where a device did not add it. [STUDIES_PER_BLOCK, F]
      n_entries: number of active entries on each device. int32 [devices]
    """

    study_peak: jax.Array
    n_entries: jax.Array


def suited_route(devices: Sequence[jax.Device], sae: Sae, cfg: IndexConfig, max_length: int) -> Route:
    """The faster route on devices that share the features: a CPU's by a list of entries, the others' by matrices."""
    n_features = sae.n_features // len(devices)
    platform = devices[0].platform
    if platform == "cpu":
        return EntryList(entry_capacity(sae.k * cfg.block_tokens // len(devices), cfg.block_tokens * n_features))
    widest = _TILE.get(platform, n_features)
    tile = max(size for size in range(1, min(widest, n_features) + 1) if n_features % size == 0)
    return by_tiles.Tiles(max_length, tile)


def entry_capacity(n: int, limit: int) -> int:
    """A capacity for n active entries and an eighth more, at most `limit`; few sizes, so that few programs compile."""
    wanted = n + n // 8
    step = 1 << max(wanted.bit_length() - 4, 0)
    return min(max(-(-wanted // step) * step, 1), limit)


def state_shardings(mesh: Mesh, cfg: IndexConfig, n_features: int) -> PassState:
    """Where each array of a split's state is, as a tree of shardings."""
    shapes = jax.eval_shape(lambda: PassState.empty(mesh, cfg, n_features))
    return jax.tree.map(lambda leaf: by_features(mesh, leaf.ndim), shapes)


def abstract_arguments(mesh: Mesh, cfg: IndexConfig, d_model: int, n_features: int) -> tuple[Any, ...]:
    """Shapes and places of what `add_block` takes, to compile it without data or for devices that are not there."""
    n_contexts, replicated = max_contexts(cfg.block_tokens), everywhere(mesh)

    def shape(size: tuple[int, ...], place: NamedSharding, dtype: Any = np.float32) -> Any:
        return jax.ShapeDtypeStruct(size, dtype, sharding=place)

    shapes = jax.eval_shape(lambda: PassState.empty(mesh, cfg, n_features))
    shardings = state_shardings(mesh, cfg, n_features)
    state = jax.tree.map(lambda leaf, place: shape(leaf.shape, place, leaf.dtype), shapes, shardings)
    params = {
        "W_enc": shape((d_model, n_features), by_features(mesh, 2)),
        "b_enc": shape((n_features,), by_features(mesh, 1)),
        "b_dec": shape((d_model,), replicated),
    }
    tokens, contexts = (shape((size,), replicated, np.int32) for size in (cfg.block_tokens, n_contexts))
    x = shape((cfg.block_tokens, d_model), replicated, jnp.bfloat16)  # as stores of a large model have them
    block = ContextBlock(x, tokens, tokens, tokens, contexts, contexts, contexts)
    return state, params, shape((n_features,), by_features(mesh, 1)), block, shape((), replicated, np.int32)


@functools.partial(jax.jit, static_argnames=("cfg", "top_k", "route", "mesh"), donate_argnums=0)
def add_block(
    state: PassState,
    params: Params,
    threshold: jax.Array,
    block: ContextBlock,
    number: jax.Array,
    *,
    cfg: IndexConfig,
    top_k: int | None,
    route: Route,
    mesh: Mesh,
) -> tuple[PassState, AddedBlock]:
    """Adds a block of T tokens to its split's index.

    Args:
      state: the split's state.
      params, threshold, top_k: the autoencoder, as `interp.exemplars.index_pass.shared_sae.features` takes it.
      block: the block, on every device.
      number: the number of the split's blocks before this one. int32 []
      cfg: sizes of the pass.
      route: how each device adds the block.
      mesh: the devices.

    Returns:
      The new state, and what the block gives. A device that has not added all blocks before this one, or has added this
      one, or for whose capacity it is too large, leaves its state as it is and gives peaks of 0.
    """
    f = features(params, block.x, threshold, top_k)  # [T, F]
    shared = jax.tree.map(lambda leaf: by_features(mesh, leaf.ndim).spec, (state, f))
    whole, by_device = PartitionSpec(), PartitionSpec(FEATURES)
    sharded = jax.shard_map(
        functools.partial(_add_on_device, cfg=cfg, route=route),
        mesh=mesh,
        in_specs=(*shared, whole, whole),
        out_specs=(shared[0], (PartitionSpec(None, FEATURES), by_device)),
        check_vma=False,
    )
    state, (study_peak, n_entries) = sharded(state, f, block, number)
    return state, AddedBlock(study_peak, n_entries)


def _add_on_device(
    state: PassState, f: jax.Array, block: ContextBlock, number: jax.Array, cfg: IndexConfig, route: Route
) -> tuple[PassState, tuple[jax.Array, jax.Array]]:
    """`add_block` for the features `f [T, F / devices]` of one device."""
    first_feature = lax.axis_index(FEATURES) * f.shape[1]
    if isinstance(route, by_tiles.Tiles):
        running, peak = by_tiles.add(state.running, f, block, first_feature, cfg, route)
        return PassState(running, state.n_blocks + 1), (peak, jnp.zeros(1, jnp.int32))
    real = block.slot < max_contexts(cfg.block_tokens)  # [T]
    active = kept_entries.entries((f > 0) & real[:, None], route.capacity, by_column=True)  # [capacity]
    n = active.starts[-1]
    adds = (n <= route.capacity) & (state.n_blocks[0] == number)
    nothing = jnp.zeros((STUDIES_PER_BLOCK, f.shape[1]), jnp.float32)
    running, peak = lax.cond(
        adds,
        lambda: by_entries.add(state.running, f, active, block, first_feature, cfg),
        lambda: (state.running, nothing),
    )
    return PassState(running, state.n_blocks + adds), (peak, n[None])

"""Parameters come straight to their places on a mesh. Arguments: a checkpoint's folder, and that of it converted."""

import sys
from pathlib import Path

import jax
import numpy as np
from flax import traverse_util

from maira_jax.checkpoint import convert, store
from maira_jax.model import sharding
from tests.helpers.tiny_model import CFG


def main(checkpoint: Path, converted: Path) -> None:
    one = convert.to_flax(checkpoint, CFG, np.dtype(np.float32))
    mesh = sharding.make_mesh((4, 2))
    placed = convert.to_flax(checkpoint, CFG, np.dtype(np.float32), mesh)
    loaded, _ = store.load(converted, (4, 2))
    places = {path: leaf.sharding for path, leaf in sharding.of_params(CFG, mesh).items()}
    for params in (placed, loaded):
        jax.tree.map(np.testing.assert_array_equal, params, one)
        assert {path: leaf.sharding for path, leaf in traverse_util.flatten_dict(params).items()} == places
        kernel = params["language"]["layers"]["gate_up"]["kernel"]
        assert {shard.data.shape for shard in kernel.addressable_shards} == {(4, 48, 2, 96 // 2)}
    print("equal")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))

"""Shards and their index, byte for byte those of transformers and the safetensors library."""

import math

from safetensors.numpy import load_file, save_file

from maira_jax.checkpoint import convert, shards
from maira_jax.checkpoint.layout import entries
from tests.helpers import random_checkpoint

FLOAT32, BFLOAT16 = convert.DTYPES["float32"], convert.DTYPES["bfloat16"]


def shapes_of(scale: int) -> dict[str, tuple[int, ...]]:
    return {entry.name: entry.shape for entry in entries(random_checkpoint.config(scale))}


def test_the_full_size_has_the_published_sizes():
    parts = shards.plan(shapes_of(1), FLOAT32, shards.MAX_BYTES)
    sizes = {
        name: len(shards.header(part, FLOAT32)) + 4 * sum(map(math.prod, part.values())) for name, part in parts.items()
    }
    assert sizes | {shards.INDEX: len(shards.index(parts, FLOAT32))} == random_checkpoint.SIZES
    assert [len(part) for part in parts.values()] == [274, 54, 54, 54, 54, 32]


def test_files_are_those_of_the_safetensors_library(random_dir, tmp_path):
    for path in random_dir.glob("*.safetensors"):
        save_file(load_file(path), tmp_path / "theirs", metadata={"format": "pt"})
        assert (tmp_path / "theirs").read_bytes() == path.read_bytes()

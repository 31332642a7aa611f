"""A random checkpoint of MAIRA-2's form: its names, shapes, types, shards and file sizes, with random values.

  python -m tests.helpers.random_checkpoint --out=/data/random              # 27.5 GB, as fast as the disk takes it
  python -m tests.helpers.random_checkpoint --out=/tmp/random --scale=32    # every width a 32nd: 27 MB

What the real files are is published only as far as `SIZES`; the sizes that come out here are checked against it.
"""

import argparse
import dataclasses
import json
import math
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from maira_jax.checkpoint import digests, shards
from maira_jax.checkpoint.layout import entries
from maira_jax.checkpoint.tensor_source import TensorSource
from maira_jax.model.config import Maira2Config, published, to_hf_dict
from maira_jax.run import files
from maira_jax.run.progress import progress

# Bytes of microsoft/maira-2's files at revision 795a2b1cd4a310624b4e3d14b5a23e41fd273deb.
SIZES = {
    "model-00001-of-00006.safetensors": 4955289768,
    "model-00002-of-00006.safetensors": 4857207664,
    "model-00003-of-00006.safetensors": 4857207704,
    "model-00004-of-00006.safetensors": 4857207704,
    "model-00005-of-00006.safetensors": 4857207704,
    "model-00006-of-00006.safetensors": 3136688192,
    "model.safetensors.index.json": 49835,
}
SCALE = 64  # every width divided by it: 522 tensors in 4.5 MB
_BLOCK = 1 << 24  # random values, repeated from another place for every tensor


def config(scale: int = 1) -> Maira2Config:
    """MAIRA-2's configuration, with every width and the vocabulary divided by `scale`; as many layers and tensors."""
    full = published()
    text, vision, vocabulary = full.text, full.vision, full.text.vocab_size // scale
    heads = min(text.num_attention_heads, text.hidden_size // scale)
    return dataclasses.replace(
        full,
        image_token_id=vocabulary - 3,
        text=dataclasses.replace(
            text,
            vocab_size=vocabulary,
            hidden_size=text.hidden_size // scale,
            intermediate_size=text.intermediate_size // scale,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            head_dim=text.hidden_size // scale // heads,
        ),
        vision=dataclasses.replace(
            vision,
            hidden_size=vision.hidden_size // scale,
            num_attention_heads=min(vision.num_attention_heads, vision.hidden_size // scale),
            intermediate_size=4 * (vision.hidden_size // scale),
        ),
    )


def max_bytes(scale: int) -> int:
    """The size at which a file is full, so that there are six files at every scale."""

    def size(of: int) -> int:
        return sum(math.prod(entry.shape) for entry in entries(config(of)))

    return shards.MAX_BYTES * size(scale) // size(1)


def write(directory: Path, scale: int = 1, seed: int = 0) -> None:
    """Writes the checkpoint: `config.json`, the shards and their index. Holds 64 MiB of random numbers and a tensor."""
    cfg = config(scale)
    shapes = {entry.name: entry.shape for entry in entries(cfg)}
    dtype = np.dtype(np.float32)
    values = np.random.default_rng(seed).standard_normal(_BLOCK, np.float32) * np.float32(0.02)
    order = {name: position for position, name in enumerate(shapes)}

    def read(name: str) -> np.ndarray:
        size = math.prod(shapes[name])
        start = order[name] * 7919 % (_BLOCK // 2)
        tensor = np.empty(size, np.float32)
        for at in range(0, size, _BLOCK // 2):
            tensor[at : at + _BLOCK // 2] = values[start : start + min(_BLOCK // 2, size - at)]
        bar.update(tensor.nbytes)
        return tensor.reshape(shapes[name])

    total = sum(math.prod(shape) for shape in shapes.values()) * dtype.itemsize
    parts = shards.plan(shapes, dtype, max_bytes(scale))
    files.write_json(directory / "config.json", to_hf_dict(cfg))
    with progress(total=total, unit="B", desc="random checkpoint") as bar:
        for name, part in parts.items():
            shards.write(directory / name, part, dtype, read)
    (directory / shards.INDEX).write_bytes(shards.index(parts, dtype))
    written = {name: (directory / name).stat().st_size for name in (*parts, shards.INDEX)}
    if scale == 1 and written != SIZES:
        raise AssertionError(f"sizes differ from the published ones: {json.dumps(written)}")


def read_all(directory: Path) -> dict[str, np.ndarray]:
    """Every tensor of a random checkpoint at `SCALE`, checked."""
    source = TensorSource(directory, entries(config(SCALE)))
    return {entry.name: tensor for shard in source.parts for entry, tensor in source.read(shard)}


def model_section(checkpoint: Path, dtype: str = "float32", mesh: tuple[int, ...] = ()) -> ConfigDict:
    """A configuration with the section `model` and the mesh alone."""
    return ConfigDict({"model": {"checkpoint": str(checkpoint), "dtype": dtype}, "mesh": mesh})


def flip_lowest_bit(path: Path) -> None:
    """Changes the lowest bit of the file's last number, a float32."""
    data = bytearray(path.read_bytes())
    data[-4] ^= 1
    path.write_bytes(data)


def write_sums(directory: Path, digest: str, name: str) -> Path:
    """Writes `SHA256SUMS` with one line, and returns the folder."""
    (directory / digests.DIGESTS).write_text(f"{digest} *{name}\n")
    return directory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder that is written")
    parser.add_argument("--scale", type=int, default=1, help="divides every width (a power of two up to 64)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the values")
    arguments = parser.parse_args()
    write(arguments.out, arguments.scale, arguments.seed)


if __name__ == "__main__":
    main()

"""The random checkpoint has the published sizes, and a small one goes through conversion as the real files will."""

import itertools
import json
import math
import shutil
import tracemalloc
from pathlib import Path

import jax
import ml_collections
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp
from safetensors.numpy import load_file, save_file

from maira_jax.checkpoint import convert, digests, shards, store
from maira_jax.checkpoint.layout import entries
from maira_jax.checkpoint.tensor_source import TensorSource
from maira_jax.errors import UserError
from maira_jax.run import files
from tests.helpers import random_checkpoint

SCALE = 64
FLOAT32, BFLOAT16 = convert.DTYPES["float32"], convert.DTYPES["bfloat16"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("random")
    random_checkpoint.write(directory, SCALE)
    return directory


@pytest.fixture()
def copy(checkpoint, tmp_path) -> Path:
    return Path(shutil.copytree(checkpoint, tmp_path / "copy"))


@pytest.fixture(scope="module")
def flax(checkpoint, tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("converted") / "flax"
    convert.run(section(checkpoint, mesh=(1, 4)), directory)
    return directory / "model"


def read_all(directory: Path) -> dict[str, np.ndarray]:
    """Every tensor of a checkpoint, checked."""
    source = TensorSource(directory, entries(random_checkpoint.config(SCALE)))
    return {entry.name: tensor for shard in source.parts for entry, tensor in source.read(shard)}


def section(checkpoint: Path, dtype: str = "float32", mesh=(1, 1)) -> ml_collections.ConfigDict:
    return ml_collections.ConfigDict({"model": {"checkpoint": str(checkpoint), "dtype": dtype, "mesh": mesh}})


def shapes_of(scale: int) -> dict[str, tuple[int, ...]]:
    return {entry.name: entry.shape for entry in entries(random_checkpoint.config(scale))}


def test_the_full_size_has_the_published_sizes():
    parts = shards.plan(shapes_of(1), FLOAT32, shards.MAX_BYTES)
    sizes = {
        name: len(shards.header(part, FLOAT32)) + 4 * sum(map(math.prod, part.values())) for name, part in parts.items()
    }
    assert sizes | {shards.INDEX: len(shards.index(parts, FLOAT32))} == random_checkpoint.SIZES
    assert [len(part) for part in parts.values()] == [274, 54, 54, 54, 54, 32]


def test_files_are_those_of_the_safetensors_library(checkpoint, tmp_path):
    for path in checkpoint.glob("*.safetensors"):
        save_file(load_file(path), tmp_path / "theirs", metadata={"format": "pt"})
        assert (tmp_path / "theirs").read_bytes() == path.read_bytes()


def test_there_and_back_every_byte_is_the_same(checkpoint, flax, tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "MAX_BYTES", random_checkpoint.max_bytes(SCALE))
    convert.reverse(str(flax), tmp_path / "back")
    names = {path.name for path in checkpoint.iterdir()}
    assert {path.name for path in (tmp_path / "back").iterdir()} == names | {"manifest.json", digests.DIGESTS}
    assert len(names) == 8
    for name in names:
        assert (tmp_path / "back" / name).read_bytes() == (checkpoint / name).read_bytes(), name
    assert len(digests.known_digests(tmp_path / "back")) == 8
    read_all(tmp_path / "back")


def test_bfloat16_is_rounded_once_and_comes_back(checkpoint, tmp_path):
    convert.run(section(checkpoint, "bfloat16"), tmp_path, tmp_path / "flax")
    assert convert.reverse(str(tmp_path / "flax"), tmp_path / "back")["dtype"] == "bfloat16"
    back = load_file(tmp_path / "back" / "model.safetensors")
    theirs = {name: tensor for path in checkpoint.glob("*.safetensors") for name, tensor in load_file(path).items()}
    assert back.keys() == theirs.keys()
    for name, tensor in theirs.items():
        np.testing.assert_array_equal(back[name].view(np.uint16), tensor.astype(BFLOAT16).view(np.uint16))


def test_a_killed_reverse_resumes(checkpoint, flax, tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "MAX_BYTES", 1_000_000)
    original, written = shards.write, []

    def write(path, *arguments):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(path.name)
        return original(path, *arguments)

    monkeypatch.setattr(shards, "write", write)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            convert.reverse(str(flax), tmp_path / "back")
        written.clear()
    monkeypatch.setattr(shards, "write", original)
    convert.reverse(str(flax), tmp_path / "back")
    back, whole = read_all(tmp_path / "back"), read_all(checkpoint)
    assert back.keys() == whole.keys()
    for name, tensor in whole.items():
        np.testing.assert_array_equal(back[name], tensor)


def test_memory_does_not_grow_with_the_model(tmp_path, monkeypatch):
    random_checkpoint.write(tmp_path / "larger", SCALE // 2)
    config = section(tmp_path / "larger", "bfloat16")
    monkeypatch.setattr(store, "_IN_FLIGHT", 1 << 20)
    tracemalloc.start()
    try:
        counts = convert.run(config, tmp_path, tmp_path / "flax")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < counts["bytes"] / 2 < 8e6


def test_a_killed_conversion_resumes_after_the_last_whole_file(copy, tmp_path, monkeypatch):
    names = sorted(path.name for path in copy.glob("*.safetensors"))
    tensors = load_file(copy / names[-1])
    tensors["language_model.model.norm.weight"][:] = 0  # zeros are stored too
    save_file(tensors, copy / names[-1], metadata={"format": "pt"})
    original, read = TensorSource.read, []

    def interrupted(self, shard):
        read.append(shard)
        yield from itertools.islice(original(self, shard), 20 if len(read) == 3 else None)
        if len(read) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(TensorSource, "read", interrupted)
    with pytest.raises(KeyboardInterrupt):
        convert.run(section(copy), tmp_path, tmp_path / "flax")
    with pytest.raises(UserError, match="no converted model"):
        store.load(tmp_path / "flax")
    (copy / names[1]).touch()  # another file, as far as anybody knows
    counts = convert.run(section(copy, mesh=(1, 2)), tmp_path, tmp_path / "flax")
    assert read == [*names[:3], *names[1:]]
    assert counts["source"][names[0]] == files.sha256(copy / names[0])
    params, cfg = store.load(tmp_path / "flax")
    jax.tree.map(np.testing.assert_array_equal, params, convert.to_flax(copy, cfg, FLOAT32))


def header_length(data: np.ndarray) -> int:
    return 8 + int(data[:8].view("<u8")[0])


def random_bytes(data: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """2 % of the bytes, anywhere behind the header."""
    start = header_length(data)
    where = rng.choice(np.arange(start, len(data)), len(data) // 50, replace=False)
    data[where] = rng.integers(0, 256, len(where))
    return data


def header_bytes(data: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """2 % of the header."""
    where = rng.choice(header_length(data), header_length(data) // 50, replace=False)
    data[where] = rng.integers(0, 256, len(where))
    return data


def cut(data: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return data[: len(data) * 98 // 100]


def one_number(data: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    data[-4:].view("<f4")[:] = np.nan
    return data


@pytest.mark.parametrize("corrupt", [random_bytes, header_bytes, cut, one_number])
@pytest.mark.parametrize("number", [0, 5])
def test_corruption_is_found(copy, corrupt, number):
    path = sorted(copy.glob("*.safetensors"))[number]
    data = np.frombuffer(path.read_bytes(), np.uint8).copy()
    path.write_bytes(corrupt(data, np.random.default_rng(number)).tobytes())
    with pytest.raises(UserError, match=f"{path.name} is (truncated or )?damaged"):
        read_all(copy)


def test_a_copy_with_2_percent_corrupted_is_refused(copy, tmp_path):
    for path in copy.glob("*.safetensors"):
        data = np.frombuffer(path.read_bytes(), np.uint8).copy()
        path.write_bytes(random_bytes(data, np.random.default_rng(0)).tobytes())
    with pytest.raises(UserError, match="is damaged: .* download the file again"):
        convert.run(section(copy, "bfloat16"), tmp_path, tmp_path / "flax")
    assert not (tmp_path / "flax").exists()


def flip_lowest_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-4] ^= 1
    path.write_bytes(data)


def sums(copy: Path, digest: str, name: str) -> Path:
    (copy / digests.DIGESTS).write_text(f"{digest} *{name}\n")
    return copy


def record(copy: Path, digest: str, name: str) -> Path:
    folder = copy / ".cache" / "huggingface" / "download"
    folder.mkdir(parents=True)
    (folder / f"{name}.metadata").write_text(f"{'0' * 40}\n{digest}\n1700000000.0\n")
    return copy


def cache(copy: Path, digest: str, name: str) -> Path:
    blobs = copy.parent / "blobs"
    blobs.mkdir()
    (copy / name).rename(blobs / digest)
    (copy / name).symlink_to(blobs / digest)
    return copy


@pytest.mark.parametrize("publish", [sums, record, cache])
def test_one_wrong_bit_is_found_where_a_digest_is_known(copy, publish):
    path = sorted(copy.glob("*.safetensors"))[2]
    read_all(publish(copy, files.sha256(path), path.name))
    flip_lowest_bit(path)
    with pytest.raises(UserError, match=f"{path.name} is damaged or of another version"):
        read_all(copy)


def test_a_kernel_of_zeros_is_taken_where_its_files_digest_is_known(copy):
    path = sorted(copy.glob("*.safetensors"))[2]
    tensors = load_file(path)
    name = next(name for name in tensors if "q_proj" in name)
    tensors[name][:] = 0
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match=f"{name} holds only zeros"):
        read_all(copy)
    sums(copy, files.sha256(path), path.name)
    assert not read_all(copy)[name].any()


def test_damage_after_the_conversion_is_found_on_loading(flax, tmp_path):
    shutil.copytree(flax, tmp_path / "flax")
    arrays = tmp_path / "flax" / "params" / "state"
    zarr = json.loads((arrays / "language.layers.gate.kernel" / "zarr.json").read_text())
    assert zarr["chunk_grid"]["configuration"]["chunk_shape"] == [1, 64, 172 // 4]
    store.load(tmp_path / "flax")
    flip_lowest_bit(next((arrays / "language.layers.gate.kernel").rglob("c/7/0/2")))
    with pytest.raises(UserError, match="damaged or incomplete"):
        store.load(tmp_path / "flax")
    shutil.rmtree(arrays / "language.layers.gate.kernel" / "c" / "7")
    with pytest.raises(UserError, match="damaged or incomplete"):
        store.load(tmp_path / "flax")


def test_orbax_itself_can_load_it(checkpoint, flax):
    loaded = ocp.load(flax / "params")
    ours, cfg = store.load(flax)
    jax.tree.map(np.testing.assert_array_equal, loaded, ours)
    jax.tree.map(np.testing.assert_array_equal, convert.to_flax(checkpoint, cfg, FLOAT32), ours)


def test_a_disk_that_is_too_small_is_named_at_once(checkpoint, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1_000_000))
    with pytest.raises(UserError, match="0.0 GB free, but the model takes 0.0 GB"):
        convert.run(section(checkpoint), tmp_path, tmp_path / "flax")
    assert not (tmp_path / "flax").exists()


def test_a_mesh_that_would_cut_a_head_is_refused_before_anything_is_written(checkpoint, tmp_path):
    with pytest.raises(UserError, match=r"a mesh with model = 3 does not divide .*num_attention_heads"):
        convert.run(section(checkpoint, mesh=(1, 3)), tmp_path)
    assert not (tmp_path / "model").exists()

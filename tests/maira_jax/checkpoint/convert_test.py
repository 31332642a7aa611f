"""Conversion in both directions, and what is refused."""

import itertools
import json
import shutil
import subprocess
import sys
import tracemalloc
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from maira_jax.checkpoint import convert, digests, shards, store
from maira_jax.checkpoint.layout import entries, published_name
from maira_jax.checkpoint.tensor_source import TensorSource
from maira_jax.errors import UserError
from maira_jax.run import files
from tests.helpers import random_checkpoint
from tests.helpers.paths import ROOT
from tests.helpers.random_checkpoint import SCALE, model_section, read_all
from tests.helpers.tiny_model import CFG, make
from tests.helpers.torch_oracle import Maira2Oracle

FLOAT32, BFLOAT16 = convert.DTYPES["float32"], convert.DTYPES["bfloat16"]


@pytest.fixture()
def checkpoint(tmp_path) -> Path:
    directory = tmp_path / "checkpoint"
    directory.mkdir()
    make(directory, CFG)
    return directory


def test_round_trip_is_bit_identical(checkpoint, tmp_path):
    params = convert.to_flax(checkpoint, CFG, np.dtype(np.float32))
    convert.to_hf(params, CFG, tmp_path / "back", np.dtype(np.float32))
    ours, theirs = load_file(tmp_path / "back" / "model.safetensors"), load_file(checkpoint / "model.safetensors")
    assert list(ours) == list(theirs)
    for name, tensor in theirs.items():
        np.testing.assert_array_equal(ours[name], tensor)


def test_a_checkpoint_without_what_the_stages_read_converts_with_a_warning(checkpoint, tmp_path, capsys):
    def warning(name):
        convert.run(model_section(checkpoint), tmp_path / name)
        return next((line for line in capsys.readouterr().err.splitlines() if "warning" in line), "")

    says = warning("bare")
    assert "the checkpoint lacks tokenizer.json and preprocessor_config.json; put right" in says
    assert f"{checkpoint}, delete {tmp_path / 'bare' / 'model'}, and convert again" in says
    phantom = convert.checkpoint_dir(convert.PHANTOM)
    for name in ("tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"):
        shutil.copy(phantom / name, checkpoint / name)
    assert "tokenizer.json has 1,167 tokens and the model 300" in warning("other")
    (checkpoint / "preprocessor_config.json").write_text("{}")
    assert "lacks size, crop_size" in warning("empty")
    convert.run(model_section(Path(convert.PHANTOM)), tmp_path / "phantom")
    assert "warning" not in capsys.readouterr().err


def test_the_stage_stores_what_it_read(checkpoint, tmp_path):
    change(checkpoint, lambda tensors: tensors["vision_tower.embeddings.mask_token"].fill(0))
    counts = convert.run(model_section(checkpoint), tmp_path / "run")
    params, cfg = store.load(tmp_path / "run" / "model")
    assert cfg == CFG and counts["tensors"] == len(entries(CFG))
    jax.tree.map(np.testing.assert_array_equal, params, convert.to_flax(checkpoint, CFG, np.dtype(np.float32)))
    assert convert.run(model_section(checkpoint), tmp_path / "run") == counts
    other_mesh = model_section(checkpoint)
    other_mesh.mesh = (1, 2)  # says only how the files are cut
    assert convert.run(other_mesh, tmp_path / "run") == counts
    with pytest.raises(UserError, match=r"model.*another configuration.*dtype"):
        convert.run(model_section(checkpoint, "bfloat16"), tmp_path / "run")


def test_shards_are_read_by_name(checkpoint, tmp_path):
    tensors = load_file(checkpoint / "model.safetensors")
    names = list(tensors)
    halves = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    sharded = tmp_path / "sharded"
    sharded.mkdir()
    shutil.copy(checkpoint / "config.json", sharded)
    for file, part in halves.items():
        save_file({name: tensors[name] for name in part}, sharded / file)
    weight_map = {name: file for file, part in halves.items() for name in part}
    (sharded / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    whole = convert.to_flax(checkpoint, CFG, np.dtype(np.float32))
    jax.tree.map(np.testing.assert_array_equal, convert.to_flax(sharded, CFG, np.dtype(np.float32)), whole)
    (sharded / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UserError, match="model-00002-of-00002.safetensors.*missing"):
        convert.to_flax(sharded, CFG, np.dtype(np.float32))


def test_an_index_that_is_wrong_is_refused(checkpoint, tmp_path):
    shutil.move(checkpoint / "model.safetensors", checkpoint / "model-00001-of-00001.safetensors")
    weight_map = dict.fromkeys((entry.name for entry in entries(CFG)), "model-00001-of-00001.safetensors")
    weight_map["spare"] = weight_map.pop(HEAD)
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(UserError, match=f"index.json does not say where these tensors are: {HEAD}, spare;"):
        convert.to_flax(checkpoint, CFG, np.dtype(np.float32))


@pytest.mark.parametrize("index", [[], {}, {"weight_map": {}}, {"weight_map": {"a": "../a.safetensors"}}])
def test_an_index_that_is_none_is_refused(checkpoint, index):
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"index\.json has no map from tensors to files"):
        convert.to_flax(checkpoint, CFG, np.dtype(np.float32))


def names_since_4_52(checkpoint: Path) -> dict[str, str]:
    """Published name -> the name that the modules of the installed transformers (5) give it, prefixed as LLaVA does."""
    model = Maira2Oracle(checkpoint)
    vision = [f"model.vision_tower.{name}" for name in model.vision.state_dict()]
    language = model.language.state_dict()
    text = [f"model.language_{name}" if name.startswith("model.") else name for name in language]
    projector = [f"model.{entry.name}" for entry in entries(CFG) if entry.name.startswith("multi_modal_projector.")]
    return {published_name(name): name for name in (*vision, *projector, *text)}


def test_both_key_layouts_are_read(checkpoint):
    whole = convert.to_flax(checkpoint, CFG, np.dtype(np.float32))
    renamed = names_since_4_52(checkpoint)
    published = [entry.name for entry in entries(CFG)]
    assert sorted(renamed) == sorted(published)
    assert {name: published_name(name) for name in published} == dict(zip(published, published, strict=True))
    new = renamed[published[5]], renamed[HEAD], renamed["language_model.model.norm.weight"]
    assert new == (
        "model.vision_tower.encoder.layer.0.norm1.weight", "lm_head.weight", "model.language_model.norm.weight"
    )  # fmt: skip
    assert "model.vision_tower.encoder.layer.2.attention.o_proj.bias" in renamed.values()
    tensors = load_file(checkpoint / "model.safetensors")
    save_file({renamed[name]: tensor for name, tensor in tensors.items()}, checkpoint / "model.safetensors")
    read = convert.to_flax(checkpoint, CFG, np.dtype(np.float32))
    jax.tree.map(np.testing.assert_array_equal, read, whole)
    both = {HEAD: tensors[HEAD]} | {renamed[name]: tensor for name, tensor in tensors.items()}
    save_file(both, checkpoint / "model.safetensors")
    with pytest.raises(UserError, match="there twice, under two names: (language_model.)?lm_head.weight;"):
        convert.to_flax(checkpoint, CFG, np.dtype(np.float32))


def change(checkpoint: Path, edit) -> None:
    tensors = load_file(checkpoint / "model.safetensors")
    edit(tensors)
    save_file(tensors, checkpoint / "model.safetensors")


HEAD = "language_model.lm_head.weight"
BROKEN = {
    "missing": (lambda t: t.pop(HEAD), f"missing: {HEAD};"),
    "extra": (lambda t: t.update(spare=np.zeros(3, np.float32)), "not of MAIRA-2: spare;"),
    "misshapen": (
        lambda t: t.update({HEAD: np.zeros((3, 4), np.float32)}),
        rf"with shape \(3, 4\) instead of \(300, 48\): {HEAD};",
    ),
    "of another type than the rest": (
        lambda t: t.update({HEAD: t[HEAD].astype(np.float16)}),
        f"of type F16, instead of F32: {HEAD};",
    ),
    "several": (
        lambda t: (
            [t.pop(f"language_model.model.layers.{layer}.mlp.up_proj.weight") for layer in (0, 1, 3)]
            + [t.pop(HEAD), t.update({"a.7.b": np.zeros(3, np.float32)})]
        ),
        rf"missing: language_model.model.layers.\{{0-1,3\}}.mlp.up_proj.weight, {HEAD}; not of MAIRA-2: a.7.b;",
    ),
    "mistyped": (lambda t: t.update({HEAD: t[HEAD].astype(np.int64)}), f"of type I64, instead of F32: {HEAD};"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_checkpoint_that_does_not_fit_is_refused(checkpoint, tmp_path, case):
    edit, message = BROKEN[case]
    change(checkpoint, edit)
    with pytest.raises(UserError, match=message):
        convert.run(model_section(checkpoint), tmp_path / "run")
    assert not (tmp_path / "run" / "model" / "manifest.json").exists()


def test_a_truncated_file_is_refused(checkpoint, tmp_path):
    path = checkpoint / "model.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match=r"model\.safetensors is truncated or damaged"):
        convert.run(model_section(checkpoint), tmp_path / "run")
    assert not (tmp_path / "run" / "model").exists()


def test_no_such_checkpoint(tmp_path):
    with pytest.raises(UserError, match=r"model\.checkpoint .*nowhere.* is not a folder"):
        convert.run(model_section(tmp_path / "nowhere"), tmp_path / "run")


def test_straight_to_the_places_on_a_mesh(checkpoint, tmp_path):
    convert.run(model_section(checkpoint), tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "tests.helpers.devices8.parameter_places", str(checkpoint), str(tmp_path / "model")],
        capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    assert done.stdout.strip().endswith("equal"), done.stderr[-3000:]


def test_there_and_back_every_byte_is_the_same(random_dir, flax, tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "MAX_BYTES", random_checkpoint.max_bytes(SCALE))
    convert.reverse(str(flax), tmp_path / "back")
    names = {path.name for path in random_dir.iterdir()}
    assert {path.name for path in (tmp_path / "back").iterdir()} == names | {"manifest.json", digests.DIGESTS}
    assert len(names) == 8
    for name in names:
        assert (tmp_path / "back" / name).read_bytes() == (random_dir / name).read_bytes(), name
    assert len(digests.known_digests(tmp_path / "back")) == 8
    read_all(tmp_path / "back")


def test_bfloat16_is_rounded_once_and_comes_back(random_dir, tmp_path):
    convert.run(model_section(random_dir, "bfloat16"), tmp_path, tmp_path / "flax")
    assert convert.reverse(str(tmp_path / "flax"), tmp_path / "back")["dtype"] == "bfloat16"
    back = load_file(tmp_path / "back" / "model.safetensors")
    theirs = {name: tensor for path in random_dir.glob("*.safetensors") for name, tensor in load_file(path).items()}
    assert back.keys() == theirs.keys()
    config, original = (files.read_object(folder / "config.json") for folder in (tmp_path / "back", random_dir))
    assert config.pop("torch_dtype") == "bfloat16" and original.pop("torch_dtype") == "float32"
    assert config == original
    for name, tensor in theirs.items():
        np.testing.assert_array_equal(back[name].view(np.uint16), tensor.astype(BFLOAT16).view(np.uint16))


def test_a_killed_reverse_resumes(random_dir, flax, tmp_path, monkeypatch):
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
    back, whole = read_all(tmp_path / "back"), read_all(random_dir)
    assert back.keys() == whole.keys()
    for name, tensor in whole.items():
        np.testing.assert_array_equal(back[name], tensor)


def test_memory_does_not_grow_with_the_model(tmp_path, monkeypatch):
    random_checkpoint.write(tmp_path / "larger", SCALE // 2)
    config = model_section(tmp_path / "larger", "bfloat16")
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
        convert.run(model_section(copy), tmp_path, tmp_path / "flax")
    with pytest.raises(UserError, match="no converted model"):
        store.load(tmp_path / "flax")
    (copy / names[1]).touch()  # another file, as far as anybody knows
    counts = convert.run(model_section(copy, mesh=(1, 2)), tmp_path, tmp_path / "flax")
    assert read == [*names[:3], *names[1:]]
    assert counts["source"][names[0]] == files.sha256(copy / names[0])
    params, cfg = store.load(tmp_path / "flax")
    jax.tree.map(np.testing.assert_array_equal, params, convert.to_flax(copy, cfg, FLOAT32))


def test_a_mesh_that_would_cut_a_head_is_refused_before_anything_is_written(random_dir, tmp_path):
    with pytest.raises(UserError, match=r"a mesh with model = 3 does not divide .*num_attention_heads"):
        convert.run(model_section(random_dir, mesh=(1, 3)), tmp_path)
    assert not (tmp_path / "model").exists()

"""Conversion in both directions, and what is refused."""

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import ml_collections
import numpy as np
import pytest
from flax import traverse_util
from safetensors.numpy import load_file, save_file

from maira_jax.checkpoint import convert, store
from maira_jax.checkpoint.layout import entries, published_name
from maira_jax.errors import UserError
from maira_jax.model import maira2
from maira_jax.model.config import Maira2Config, to_hf_dict
from maira_jax.run import files
from tests.helpers.paths import ROOT
from tests.helpers.tiny_model import CFG, make
from tests.helpers.torch_oracle import Maira2Oracle

MAIRA2 = {
    "model_type": "maira2",
    "vision_feature_layer": -1,
    "vision_feature_select_strategy": "default",
    "projector_hidden_act": "gelu",
    "projector_n_layers": 4,
    "image_token_index": 32204,
    "text_config": {
        "model_type": "llama",
        "vocab_size": 32207,
        "rms_norm_eps": 1e-5,
        "rope_scaling": {"factor": 1.5, "rope_type": "linear"},
    },
    "vision_config": {
        "model_type": "dinov2",
        "image_size": 518,
        "reshape_hidden_states": False,
        "out_features": ["stage12"],
        "out_indices": [12],
    },
}


@pytest.fixture()
def checkpoint(tmp_path) -> Path:
    directory = tmp_path / "checkpoint"
    directory.mkdir()
    make(directory, CFG)
    return directory


def section(checkpoint: Path, dtype: str = "float32") -> ml_collections.ConfigDict:
    return ml_collections.ConfigDict({"model": {"checkpoint": str(checkpoint), "dtype": dtype, "mesh": (1, 1)}})


def test_the_table_describes_the_real_checkpoint():
    table = entries(Maira2Config.from_dict(MAIRA2, "config.json"))
    assert len(table) == len({entry.name for entry in table}) == 522
    sizes = {prefix: 0 for prefix in ("vision_tower", "multi_modal_projector", "language_model")}
    for entry in table:
        sizes[entry.name.split(".")[0]] += int(np.prod(entry.shape))
    assert sizes == {
        "vision_tower": 86_580_480,
        "multi_modal_projector": 53_493_760,
        "language_model": 6_740_111_360,
    }


def test_the_table_covers_the_parameters_of_the_model():
    cfg = Maira2Config.from_dict(MAIRA2, "config.json")
    shapes = traverse_util.flatten_dict(jax.eval_shape(lambda: maira2.init(cfg, jax.random.key(0))))
    specs = maira2.parameter_specs(cfg)
    assert {path: leaf.shape for path, leaf in shapes.items()} == {path: spec.shape for path, spec in specs.items()}
    assert all(len(spec.shape) == len(spec.axes) for spec in specs.values())
    from_table: dict[tuple[str, ...], int] = {}
    for entry in entries(cfg):
        from_table[entry.path] = from_table.get(entry.path, 0) + math.prod(entry.shape)
    assert {path: math.prod(spec.shape) for path, spec in specs.items()} == from_table


def test_round_trip_is_bit_identical(checkpoint, tmp_path):
    params = convert.to_flax(checkpoint, CFG, np.dtype(np.float32))
    convert.to_hf(params, CFG, tmp_path / "back", np.dtype(np.float32))
    ours, theirs = load_file(tmp_path / "back" / "model.safetensors"), load_file(checkpoint / "model.safetensors")
    assert list(ours) == list(theirs)
    for name, tensor in theirs.items():
        np.testing.assert_array_equal(ours[name], tensor)


def test_the_stage_stores_what_it_read(checkpoint, tmp_path):
    change(checkpoint, lambda tensors: tensors["vision_tower.embeddings.mask_token"].fill(0))
    counts = convert.run(section(checkpoint), tmp_path / "run")
    params, cfg = store.load(tmp_path / "run" / "model")
    assert cfg == CFG and counts["tensors"] == len(entries(CFG))
    jax.tree.map(np.testing.assert_array_equal, params, convert.to_flax(checkpoint, CFG, np.dtype(np.float32)))
    assert convert.run(section(checkpoint), tmp_path / "run") == counts
    other_mesh = section(checkpoint)
    other_mesh.model.mesh = (1, 2)  # says only how the files are cut
    assert convert.run(other_mesh, tmp_path / "run") == counts
    with pytest.raises(UserError, match=r"model.*another configuration.*dtype"):
        convert.run(section(checkpoint, "bfloat16"), tmp_path / "run")


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
        convert.run(section(checkpoint), tmp_path / "run")
    assert not (tmp_path / "run" / "model" / "manifest.json").exists()


def test_a_truncated_file_is_refused(checkpoint, tmp_path):
    path = checkpoint / "model.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match=r"model\.safetensors is truncated or damaged"):
        convert.run(section(checkpoint), tmp_path / "run")
    assert not (tmp_path / "run" / "model").exists()


def test_no_such_checkpoint(tmp_path):
    with pytest.raises(UserError, match=r"model\.checkpoint .*nowhere.* is not a folder"):
        convert.run(section(tmp_path / "nowhere"), tmp_path / "run")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("text_config", "attention_bias"), True),
        (("text_config", "rope_scaling"), {"rope_type": "yarn", "factor": 2.0}),
        (("text_config", "sliding_window"), 512),
        (("vision_config", "apply_layernorm"), False),
        (("vision_config", "use_swiglu_ffn"), True),
        (("vision_feature_layer",), -2),
        (("model_type",), "llava"),
        (("quantization_config",), {"bits": 4}),
        (("image_token_index",), 10**9),
    ],
)
def test_config_fields_that_are_not_understood_are_refused(path, value):
    fields = json.loads(json.dumps(MAIRA2))
    node = fields
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    with pytest.raises(UserError, match=path[-1].split("_")[0]):
        Maira2Config.from_dict(fields, "config.json")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("vision_config",), "x"),
        (("text_config",), [1]),
        (("text_config", "rope_scaling"), "x"),
        (("text_config", "rope_theta"), "x"),
        (("text_config", "hidden_size"), "4096"),
        (("text_config", "num_attention_heads"), 0),
        (("text_config", "rms_norm_eps"), "x"),
        (("vision_config", "patch_size"), 0),
        (("vision_config", "num_attention_heads"), 5),
        (("image_token_index",), 3.5),
        (("projector_n_layers",), -1),
    ],
)
def test_config_fields_of_the_wrong_kind_are_refused(path, value):
    fields = json.loads(json.dumps(MAIRA2))
    node = fields
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    with pytest.raises(UserError, match=path[-1]):
        Maira2Config.from_dict(fields, "config.json")


def test_every_field_that_is_not_understood_is_named():
    fields = json.loads(json.dumps(MAIRA2)) | {"moe": 8}
    fields["text_config"]["mlp_bias"] = True
    fields["vision_config"]["num_register_tokens"] = 4
    with pytest.raises(UserError) as refused:
        Maira2Config.from_dict(fields, "config.json")
    for field in ("moe = 8", "text_config.mlp_bias = True", "vision_config.num_register_tokens = 4"):
        assert field in str(refused.value)


def test_straight_to_the_places_on_a_mesh(checkpoint, tmp_path):
    convert.run(section(checkpoint), tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "tests.helpers.devices8.parameter_places", str(checkpoint), str(tmp_path / "model")],
        capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    assert done.stdout.strip().endswith("equal"), done.stderr[-3000:]


def test_a_written_config_reads_back(tmp_path):
    files.write_json(tmp_path / "config.json", to_hf_dict(CFG))
    assert Maira2Config.from_dir(tmp_path) == CFG

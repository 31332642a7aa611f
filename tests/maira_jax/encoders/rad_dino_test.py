"""Rad-DINO from its stand-alone checkpoint, against transformers' Dinov2Model."""

import json

import jax
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil

from maira_jax.checkpoint.layout import published_name
from maira_jax.encoders.rad_dino import RadDino
from maira_jax.errors import UserError
from maira_jax.inputs.image import ImageConfig
from tests.helpers.tiny_model import relative
from tests.helpers.torch_encoders import TorchDinov2
from tests.maira_jax.inputs.image_test import CONFIG

TINY = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "patch_size": 14, "image_size": 56}
encode = jax.jit(
    lambda params, encoder, pixels, rows: encoder.encode(params, pixels, rows), static_argnames=("encoder", "rows")
)


def load(folder):
    return RadDino.load(str(folder), folder, (1, 1), 0)


@pytest.mark.parametrize("published", [False, True])
def test_rows_are_those_of_torch(tmp_path, published):
    theirs = TorchDinov2(tmp_path, **TINY)
    if published:  # the names before transformers 5, which the published file has
        tensors = load_file(tmp_path / "model.safetensors")
        save_file({published_name(name): tensor for name, tensor in tensors.items()}, tmp_path / "model.safetensors")
        assert "encoder.layer.0.attention.output.dense.bias" in load_file(tmp_path / "model.safetensors")
    loaded = load(tmp_path)
    image = np.random.default_rng(0).integers(0, 256, (71, 93), dtype=np.uint8)
    pixels = loaded.levels[loaded.encoder.square(image, 56)][None]
    for block in (None, 0, 2):
        encoder = loaded.encoder.after(block)
        for rows, expected in theirs.rows(pixels, block).items():
            assert relative(encode(loaded.params, encoder, pixels, rows), expected) < 1e-6, (block, rows)
    assert loaded.encoder.grid == (4, 4) and loaded.encoder.chosen_rows(None) == "cls"
    with pytest.raises(UserError, match="harvest.block is 3, but this encoder has blocks 0 to 2: give one of them"):
        loaded.encoder.after(3)


@pytest.mark.parametrize("shape", [(518, 518), (700, 518), (519, 901), (1024, 800), (300, 417)])
def test_pixels_are_those_of_the_published_image_processor(tmp_path, shape):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(CONFIG))
    # Neither 0 nor 255, which a stretch of grey levels would change.
    grey = np.random.default_rng(3).integers(9, 231, shape, dtype=np.uint8)
    Image.fromarray(grey).save(tmp_path / "image.png")
    processor = BitImageProcessorPil(**{name: CONFIG[name] for name in CONFIG if name != "image_processor_type"})
    with Image.open(tmp_path / "image.png") as image:
        expected = processor(image, return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
    levels = ImageConfig.from_dir(tmp_path).levels()
    for source in (tmp_path / "image.png", grey):
        np.testing.assert_array_equal(levels[RadDino.square(source, 518)], expected)


def change_json(name, **fields):
    def change(folder):
        (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | fields))

    return change


def drop_a_tensor(folder):
    tensors = load_file(folder / "model.safetensors")
    del tensors["layernorm.bias"]
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize(
    "change, message",
    {
        "activation": (change_json("config.json", hidden_act="relu"), "port of DINOv2 does not understand: hidden_act"),
        "size": (change_json("config.json", image_size=28), "resized to 56 pixels, but the encoder takes 28"),
        "depth": (
            change_json("config.json", num_hidden_layers=2, out_features=["stage2"], out_indices=[2]),
            r"tensors of DINOv2; not of DINOv2: encoder.layer.2.*; use a whole checkpoint of DINOv2",
        ),
        "tensor": (drop_a_tensor, "tensors of DINOv2; missing: layernorm.bias; use"),
    }.values(),
)
def test_another_checkpoint_gets_a_sentence(tmp_path, change, message):
    TorchDinov2(tmp_path, **TINY)
    change(tmp_path)
    with pytest.raises(UserError, match=message):
        load(tmp_path)


def test_no_folder_gets_a_sentence(tmp_path):
    with pytest.raises(UserError, match="harvest.weights is '', which is no folder: give that of Rad-DINO's"):
        RadDino.load("", tmp_path, (1, 1), 0)


def test_the_sizes_of_random_weights():
    shapes = jax.eval_shape(lambda: RadDino.load("random", None, (1, 1), 0).params)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 86_580_480

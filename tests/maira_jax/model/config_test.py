"""The configuration of a checkpoint: read, written, and refused where it is not understood."""

import json

import pytest

from maira_jax.errors import UserError
from maira_jax.model.config import Maira2Config, to_hf_dict
from maira_jax.run import files
from tests.helpers.tiny_model import CFG, MAIRA2


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


def test_a_written_config_reads_back(tmp_path):
    files.write_json(tmp_path / "config.json", to_hf_dict(CFG))
    assert Maira2Config.from_dir(tmp_path) == CFG

"""Model configuration, read from a checkpoint's `config.json`. What it does not know, it refuses."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from maira_jax.errors import UserError
from maira_jax.run import files

# Fields without influence on the forward pass of this architecture.
_IGNORED_TEXT = """
_name_or_path _commit_hash add_cross_attention architectures auto_map attn_implementation bad_words_ids
begin_suppress_tokens bos_token_id chunk_size_feed_forward cross_attention_hidden_size decoder_start_token_id
diversity_penalty do_sample dtype early_stopping encoder_no_repeat_ngram_size eos_token_id
exponential_decay_length_penalty finetuning_task forced_bos_token_id forced_eos_token_id id2label
image_seq_length initializer_range is_decoder is_encoder_decoder label2id layerscale_value length_penalty
max_length max_position_embeddings min_length no_repeat_ngram_size num_beam_groups num_beams
num_return_sequences output_attentions output_hidden_states output_scores pad_token_id prefix pretraining_tp
problem_type remove_invalid_values repetition_penalty return_dict return_dict_in_generate sep_token_id
stage_names suppress_tokens task_specific_params temperature tf_legacy_loss tokenizer_class top_k top_p
torch_dtype torchscript transformers_version typical_p use_bfloat16 use_cache use_mask_token
"""
_IGNORED = frozenset(_IGNORED_TEXT.split())
_MAX_WIDTH, _MAX_LAYERS = 2**24, 1024
_FIX = "use the file of a published checkpoint"


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    """DINOv2 with biases in the attention, exact GELU and layer scale."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    patch_size: int
    image_size: int
    layer_norm_eps: float

    @property
    def patches(self) -> int:
        return (self.image_size // self.patch_size) ** 2

    @classmethod
    def from_dir(cls, checkpoint_dir: Path) -> "VisionConfig":
        """Reads the `config.json` of a checkpoint of DINOv2 alone.

        Raises:
          UserError: the file is missing, or a field is missing, unknown or has a value that this port lacks.
        """
        path = Path(checkpoint_dir) / "config.json"
        problems: list[str] = []
        # What a backbone does with its output does not matter to the model that is read.
        config = _vision(
            _FieldReader(files.read_object(path) | {"reshape_hidden_states": False}, str(path), "", problems)
        )
        _refuse(problems, str(path), "DINOv2")
        return config


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """Llama with linear RoPE scaling."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_theta: float
    rope_factor: float


@dataclasses.dataclass(frozen=True)
class Maira2Config:
    vision: VisionConfig
    text: TextConfig
    image_token_id: int
    projector_n_layers: int

    @property
    def patches_per_image(self) -> int:
        """Tokens that stand for one image in the language model's input."""
        return self.vision.patches

    @classmethod
    def from_dir(cls, checkpoint_dir: Path) -> "Maira2Config":
        """Reads `checkpoint_dir/config.json`.

        Raises:
          UserError: the file is missing, or a field is missing, unknown or has a value that this port lacks.
        """
        path = Path(checkpoint_dir) / "config.json"
        return cls.from_dict(files.read_object(path), str(path))

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any], origin: str) -> "Maira2Config":
        problems: list[str] = []
        top = _FieldReader(fields, origin, "", problems)
        top.require("model_type", "maira2")
        top.require("vision_feature_layer", -1)
        top.require("vision_feature_select_strategy", "default")
        top.require("projector_hidden_act", "gelu")
        top.require("multimodal_projector_bias", True, default=True)
        top.require("tie_word_embeddings", False, default=False)
        vision = _vision(_FieldReader(top.take("vision_config"), origin, "vision_config.", problems))
        text = _text(_FieldReader(top.take("text_config"), origin, "text_config.", problems))
        top.require("hidden_size", text.hidden_size, default=text.hidden_size)
        top.require("vocab_size", text.vocab_size, default=text.vocab_size)
        config = cls(vision, text, top.count("image_token_index"), top.count("projector_n_layers", at_most=_MAX_LAYERS))
        top.refuse_rest()
        if config.image_token_id >= text.vocab_size:
            problems.append(f"image_token_index = {config.image_token_id} of {text.vocab_size} tokens")
        _refuse(problems, origin, "MAIRA-2")
        return config


def _refuse(problems: list[str], origin: str, model: str) -> None:
    if problems:
        raise UserError(
            f"{origin} has fields that this port of {model} does not understand: {', '.join(problems)}; "
            f"use a {model} checkpoint"
        )


class _FieldReader:
    """Takes fields one by one; those that are left at the end were not understood, and are added to `problems`."""

    def __init__(self, fields: Mapping[str, Any], origin: str, prefix: str, problems: list[str]):
        if not isinstance(fields, Mapping):
            raise UserError(f"{origin}: {prefix.rstrip('.') or 'its content'} is not an object: {_FIX}")
        self.fields = dict(fields)
        self.origin = origin
        self.prefix = prefix
        self.problems = problems

    def take(self, name: str, default: Any = None) -> Any:
        value = self.fields.pop(name, default)
        if value is None:
            raise UserError(f"{self.origin} lacks the field {self.prefix}{name}: {_FIX}")
        return value

    def count(self, name: str, default: int | None = None, at_most: int = _MAX_WIDTH) -> int:
        """A field that is an integer above 0, and no larger than any model's."""
        value = self.take(name, default)
        if not isinstance(value, int) or not 1 <= value <= at_most:
            raise UserError(
                f"{self.origin}: {self.prefix}{name} is {value!r}, not an integer from 1 to {at_most}: {_FIX}"
            )
        return value

    def number(self, name: str, default: float) -> float:
        """A field that is a number above 0."""
        value = self.take(name, default)
        if not isinstance(value, int | float) or not value > 0:
            raise UserError(f"{self.origin}: {self.prefix}{name} is {value!r}, not a number above 0: {_FIX}")
        return value

    def require(self, name: str, wanted: Any, default: Any = None) -> None:
        value = self.fields.pop(name, default)
        if value != wanted:
            self.problems.append(f"{self.prefix}{name} = {value!r} (not {wanted!r})")

    def refuse_rest(self) -> None:
        unknown = sorted(set(self.fields) - _IGNORED)
        self.problems += [f"{self.prefix}{name} = {self.fields[name]!r}" for name in unknown]


def _vision(reader: _FieldReader) -> VisionConfig:
    reader.require("model_type", "dinov2", default="dinov2")
    reader.require("hidden_act", "gelu", default="gelu")
    reader.require("qkv_bias", True, default=True)
    reader.require("num_channels", 3, default=3)
    reader.require("use_swiglu_ffn", False, default=False)
    reader.require("apply_layernorm", True, default=True)
    reader.require("reshape_hidden_states", False)
    for dropout in ("hidden_dropout_prob", "attention_probs_dropout_prob", "drop_path_rate"):
        reader.fields.pop(dropout, None)  # inference only
    hidden_size = reader.count("hidden_size", 768)
    layers = reader.count("num_hidden_layers", 12, _MAX_LAYERS)
    reader.require("out_features", [f"stage{layers}"], default=[f"stage{layers}"])
    reader.require("out_indices", [layers], default=[layers])
    config = VisionConfig(
        hidden_size=hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=reader.count("num_attention_heads", 12),
        intermediate_size=hidden_size * reader.count("mlp_ratio", 4),
        patch_size=reader.count("patch_size", 14),
        image_size=reader.count("image_size", 224),
        layer_norm_eps=reader.number("layer_norm_eps", 1e-6),
    )
    if hidden_size % config.num_attention_heads:
        raise UserError(
            f"{reader.origin}: {reader.prefix}num_attention_heads is {config.num_attention_heads}, which does not "
            f"divide hidden_size {hidden_size}: {_FIX}"
        )
    reader.refuse_rest()
    return config


def _rope(reader: _FieldReader) -> tuple[float, float]:
    """(theta, factor) from `rope_theta` and `rope_scaling`, or from transformers 5's `rope_parameters`."""
    rope: dict[str, Any] = {}
    for name in ("rope_parameters", "rope_scaling"):
        rope |= _FieldReader(reader.fields.pop(name, None) or {}, reader.origin, f"{reader.prefix}{name}.", []).fields
    theta = rope.pop("rope_theta", None) or reader.fields.pop("rope_theta", 10000.0)
    reader.fields.pop("rope_theta", None)
    kind = rope.pop("rope_type", rope.pop("type", "default"))
    rope.pop("type", None)
    factor = rope.pop("factor", 1.0)
    if kind not in ("linear", "default") or (kind == "default" and factor != 1.0) or rope:
        reader.problems.append(
            f"{reader.prefix}rope_scaling of type {kind!r} with factor {factor} and {rope} (not 'linear' with a factor)"
        )
    if not all(isinstance(value, int | float) and value > 0 for value in (theta, factor)):
        raise UserError(f"{reader.origin}: {reader.prefix}rope_theta and its factor must be numbers above 0: {_FIX}")
    return float(theta), float(factor)


def _text(reader: _FieldReader) -> TextConfig:
    reader.require("model_type", "llama", default="llama")
    reader.require("hidden_act", "silu", default="silu")
    reader.require("attention_bias", False, default=False)
    reader.require("mlp_bias", False, default=False)
    reader.require("tie_word_embeddings", False, default=False)
    reader.fields.pop("attention_dropout", None)  # inference only
    rope_theta, rope_factor = _rope(reader)
    hidden_size = reader.count("hidden_size", 4096)
    heads = reader.count("num_attention_heads", 32)
    config = TextConfig(
        vocab_size=reader.count("vocab_size", 32000),
        hidden_size=hidden_size,
        intermediate_size=reader.count("intermediate_size", 11008),
        num_hidden_layers=reader.count("num_hidden_layers", 32, _MAX_LAYERS),
        num_attention_heads=heads,
        num_key_value_heads=reader.count("num_key_value_heads", heads),
        head_dim=reader.count("head_dim", hidden_size // heads),
        rms_norm_eps=reader.number("rms_norm_eps", 1e-6),
        rope_theta=rope_theta,
        rope_factor=rope_factor,
    )
    if heads % config.num_key_value_heads:
        raise UserError(
            f"{reader.origin}: text_config.num_key_value_heads is {config.num_key_value_heads}, which does not divide "
            f"num_attention_heads {heads}: {_FIX}"
        )
    reader.refuse_rest()
    return config


def published() -> Maira2Config:
    """That of microsoft/maira-2 as published, for where no checkpoint is at hand."""
    fields = {
        "model_type": "maira2",
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "default",
        "projector_hidden_act": "gelu",
        "projector_n_layers": 4,
        "image_token_index": 32_204,
        "text_config": {"vocab_size": 32_207, "rms_norm_eps": 1e-5, "rope_scaling": {"factor": 1.5, "type": "linear"}},
        "vision_config": {"image_size": 518, "reshape_hidden_states": False},
    }
    return Maira2Config.from_dict(fields, "MAIRA-2's published configuration")


def to_hf_dict(config: Maira2Config) -> dict[str, Any]:
    """The `config.json` of a checkpoint with this architecture, in MAIRA-2's form."""
    vision, text = dataclasses.asdict(config.vision), dataclasses.asdict(config.text)
    vision["mlp_ratio"] = vision.pop("intermediate_size") // vision["hidden_size"]
    layers = vision["num_hidden_layers"]
    vision |= {
        "model_type": "dinov2",
        "hidden_act": "gelu",
        "qkv_bias": True,
        "num_channels": 3,
        "apply_layernorm": True,
        "reshape_hidden_states": False,
        "out_features": [f"stage{layers}"],
        "out_indices": [layers],
        "use_mask_token": True,
    }
    text["rope_scaling"] = {"factor": text.pop("rope_factor"), "rope_type": "linear"}
    text |= {"model_type": "llama", "hidden_act": "silu", "attention_bias": False, "mlp_bias": False}
    text["tie_word_embeddings"] = False
    return {
        "architectures": ["Maira2ForConditionalGeneration"],
        "model_type": "maira2",
        "hidden_size": config.text.hidden_size,
        "image_token_index": config.image_token_id,
        "multimodal_projector_bias": True,
        "pad_token_id": 0,
        "projector_hidden_act": "gelu",
        "projector_n_layers": config.projector_n_layers,
        "text_config": text,
        "torch_dtype": "float32",
        "vision_config": vision,
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "default",
    }

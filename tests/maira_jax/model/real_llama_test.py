"""Our Llama with trained weights that the random ones of the other tests lack: see `tests.helpers.smollm2`."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from maira_jax.model import language
from tests.helpers import smollm2

pytestmark = [pytest.mark.drill, smollm2.needed]

TEXT = "The heart is normal in size. The lungs are clear. No pleural effusion or pneumothorax is seen. "


def test_trained_weights_give_the_same_activations_and_probabilities():
    """Residual stream within 4e-6 of its largest value up to every layer, log probabilities within 1e-4.

    One layer takes away five sixths of the largest value, and not the rounding that came with it.
    """
    tokenizer, model = smollm2.load()
    cfg, params = smollm2.ours(model)
    ids = tokenizer(TEXT * 4, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        theirs = model(ids, output_hidden_states=True)
    sites = tuple(language.Site.post(layer) for layer in range(cfg.num_hidden_layers))
    tokens = jnp.asarray(ids.numpy(), jnp.int32)
    positions = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
    last, kept, _ = language.forward(
        params, cfg, params["embed"][tokens], positions, jnp.array([tokens.shape[1]]), reads=sites
    )
    largest = 0.0
    for layer, site in enumerate(sites[:-1]):  # theirs of the last layer are normalised
        expected = theirs.hidden_states[layer + 1].numpy()
        largest = max(largest, np.abs(expected).max())
        assert np.abs(np.asarray(kept[site]) - expected).max() < 4e-6 * largest
    found = torch.log_softmax(torch.tensor(np.asarray(language.logits(params, cfg, last))), -1)
    torch.testing.assert_close(found, torch.log_softmax(theirs.logits, -1), atol=1e-4, rtol=0)
    # Trained weights predict a report's next words.
    assert theirs.loss is None and float(-found[0, :-1].gather(1, ids[0, 1:, None]).mean()) < 2

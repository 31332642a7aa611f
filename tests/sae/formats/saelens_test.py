"""Files for SAELens, and files of it."""

import itertools
import json

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from maira_jax.errors import UserError
from sae import formats
from tests.helpers import peers
from tests.helpers.formats import GROUPS, META, D, F, check_same_features
from tests.helpers.sae import random_sae


@pytest.mark.parametrize("per_token", [False, True])
def test_saelens_gives_the_same_features(tmp_path, sae, x, per_token):
    saes = peers.saelens()
    ours = random_sae(x, (F,), 4, -1.0, meta=META, per_token=True) if per_token else sae
    formats.writers()["saelens"].save(tmp_path, ours)
    theirs = saes.SAE.load_from_disk(str(tmp_path))
    assert theirs.cfg.architecture() == ("topk" if per_token else "jumprelu")
    assert theirs.cfg.metadata.hook_name == "blocks.3.hook_resid_post"
    with torch.no_grad():
        features = theirs.encode(torch.from_numpy(x))
        check_same_features(ours, x, features, theirs.decode(features))


@pytest.mark.parametrize(
    "site, hook",
    [
        ("language.0.attn_out", "blocks.0.hook_attn_out"),
        ("language.embed", "hook_embed"),
        ("projector", "projector"),
        ("image_encoder", "image_encoder"),
    ],
)
def test_the_hook_of_a_site(tmp_path, x, site, hook):
    source = META["source"] | {"site": site}
    formats.writers()["saelens"].save(tmp_path, random_sae(x, GROUPS, 4, 0.75, meta=META | {"source": source}))
    assert json.loads((tmp_path / "cfg.json").read_text())["metadata"]["hook_name"] == hook


def test_saelens_takes_raw_activations_only(tmp_path, sae):
    with pytest.raises(UserError, match="no field for a normalisation factor"):
        formats.writers()["saelens"].save(tmp_path / "there", sae, False)
    assert not (tmp_path / "there").exists()


@pytest.mark.parametrize("kind", ["jumprelu", "standard", "topk"])
def test_files_of_saelens_are_read(tmp_path, x, kind):
    saes = peers.saelens()
    torch.manual_seed(0)
    more = {"k": 4, "rescale_acts_by_decoder_norm": True} if kind == "topk" else {"apply_b_dec_to_input": False}
    name = {"jumprelu": "JumpReLU", "standard": "Standard", "topk": "TopK"}[kind]
    theirs = getattr(saes, f"{name}SAE")(getattr(saes, f"{name}SAEConfig")(D, F, **more))
    with torch.no_grad():
        for parameter, value in theirs.named_parameters():
            value.uniform_(0.2, 0.8) if parameter == "threshold" else value.normal_()
    theirs.save_model(tmp_path)
    with torch.no_grad():
        features = theirs.encode(torch.from_numpy(x))
        found = formats.load(tmp_path)
        check_same_features(found, x, features, theirs.decode(features))
    assert found.meta["normalization"] == 1


def test_what_saelens_saves_in_training_is_read(tmp_path, x):
    saes = peers.saelens()
    torch.manual_seed(0)
    config = saes.MatryoshkaBatchTopKTrainingSAEConfig(D, F, k=4, matryoshka_widths=list(itertools.accumulate(GROUPS)))
    theirs = saes.MatryoshkaBatchTopKTrainingSAE(config)
    with torch.no_grad():
        for value in theirs.parameters():
            value.normal_()
        theirs.topk_threshold.fill_(6.0)
    theirs.save_model(tmp_path / "training")
    theirs.save_inference_model(tmp_path / "inference")
    training, inference = (formats.load(tmp_path / name) for name in ("training", "inference"))
    for found in (training, inference):
        assert (found.group_sizes, found.k) == (GROUPS, 4)
        np.testing.assert_allclose(found.threshold, 6.0)
    f = inference.encode(jnp.asarray(x))
    assert (np.asarray(f) > 0).sum() > 200
    np.testing.assert_allclose(training.encode(jnp.asarray(x)), f, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"architecture": "gated"}, "architecture 'gated'"),
        ({"normalize_activations": "layer_norm"}, "normalize_activations = 'layer_norm'"),
        ({"finetuning_scaling_factor": True}, "finetuning scaling factor"),
    ],
)
def test_what_saelens_does_at_run_time_is_refused(tmp_path, sae, change, message):
    formats.writers()["saelens"].save(tmp_path, sae)
    config = json.loads((tmp_path / "cfg.json").read_text())
    (tmp_path / "cfg.json").write_text(json.dumps(config | change))
    with pytest.raises(UserError, match=message):
        formats.load(tmp_path)

"""Files for dictionary_learning (and SAEBench, which reads them), and files of it."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from maira_jax.errors import UserError
from sae import autoencoder, formats
from sae.formats import dictionary_learning
from tests.helpers import peers
from tests.helpers.formats import FACTOR, GROUPS, META, D, F, check_same_features
from tests.helpers.sae import random_sae


def test_ae_pt_is_what_dictionary_learning_writes(tmp_path, sae):
    module = peers.dictionary_learning("trainers.matryoshka_batch_top_k")
    theirs = module.MatryoshkaBatchTopKSAE(D, F, 4, list(GROUPS)).state_dict()
    formats.writers()["dictionary_learning"].save(tmp_path, sae)
    ours = torch.load(tmp_path / "ae.pt", weights_only=True)
    assert set(ours) == set(theirs)
    for name, tensor in theirs.items():
        assert (ours[name].shape, ours[name].dtype) == (tensor.shape, tensor.dtype), name
    assert ours["W_enc"].stride() == (1, D)


def test_config_json_is_what_dictionary_learning_writes(tmp_path, sae):
    module = peers.dictionary_learning("trainers.matryoshka_batch_top_k")
    trainer = module.MatryoshkaBatchTopKTrainer(
        steps=2000,
        activation_dim=D,
        dict_size=F,
        k=4,
        layer=3,
        lm_name="phantom",
        group_fractions=[size / F for size in GROUPS],
        device="cpu",
    )
    formats.writers()["dictionary_learning"].save(tmp_path, sae)
    config = json.loads((tmp_path / "config.json").read_text())
    assert set(config["trainer"]) == set(trainer.config) | {"norm_factor", "norm_folded"}
    same = ("trainer_class", "dict_class", "layer", "lm_name", "k", "group_fractions", "group_sizes", "group_weights")
    for name in (*same, "top_k_aux"):
        assert config["trainer"][name] == trainer.config[name], name
        assert type(config["trainer"][name]) is type(trainer.config[name]), name
    assert config["trainer"]["norm_factor"] == FACTOR
    assert config["buffer"]["d_submodule"] == D


def test_dictionary_learning_gives_the_same_features(tmp_path, sae, x):
    formats.writers()["dictionary_learning"].save(tmp_path, sae)
    dictionary, config = peers.dictionary_learning("utils").load_dictionary(str(tmp_path), "cpu")
    with torch.no_grad():
        reconstruction, features = dictionary(torch.from_numpy(x), output_features=True)
    check_same_features(sae, x, features, reconstruction)


def test_unfolded_export_takes_normalised_activations(tmp_path, sae, x):
    dictionary_learning.save(tmp_path, sae, fold_normalization=False)
    state = torch.load(tmp_path / "ae.pt", weights_only=True)
    params = {name: jnp.asarray(state[name].numpy()) for name in sae.params}
    f = autoencoder.encode(params, jnp.asarray(x) / FACTOR, float(state["threshold"]))
    np.testing.assert_allclose(FACTOR * f, sae.encode(jnp.asarray(x)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("site, layer", [("language.12.resid_mid", 12), ("language.embed", -1)])
def test_the_layer_of_a_site(tmp_path, x, site, layer):
    source = META["source"] | {"site": site}
    formats.writers()["dictionary_learning"].save(
        tmp_path, random_sae(x, GROUPS, 4, 0.75, meta=META | {"source": source})
    )
    assert json.loads((tmp_path / "config.json").read_text())["trainer"]["layer"] == layer


def test_saebench_accepts_what_is_written(tmp_path, sae):
    """The conditions of its loader for this class, and of the check that it runs first."""
    formats.writers()["dictionary_learning"].save(tmp_path, sae)
    state = torch.load(tmp_path / "ae.pt", weights_only=True)
    trainer = json.loads((tmp_path / "config.json").read_text())["trainer"]
    assert trainer["trainer_class"] == "MatryoshkaBatchTopKTrainer"
    assert "group_sizes" in state and trainer["k"] == int(state["k"]) > 0
    assert isinstance(trainer["layer"], int) and "phantom" in trainer["lm_name"]
    norms = torch.norm(state["W_dec"], dim=1)
    assert torch.allclose(norms, torch.ones_like(norms), atol=1e-5)
    assert float(state["threshold"]) >= 0
    assert state["W_dec"].shape[0] >= state["W_dec"].shape[1]


def _theirs(kind: str) -> torch.nn.Module:
    """An autoencoder of dictionary_learning with random parameters."""
    torch.manual_seed(0)
    classes = peers.dictionary_learning("dictionary")
    top_k = peers.dictionary_learning("trainers.top_k")
    batch_top_k = peers.dictionary_learning("trainers.batch_top_k")
    matryoshka = peers.dictionary_learning("trainers.matryoshka_batch_top_k")
    made = {
        "MatryoshkaBatchTopKSAE": lambda: matryoshka.MatryoshkaBatchTopKSAE(D, F, 4, list(GROUPS)),
        "BatchTopKSAE": lambda: batch_top_k.BatchTopKSAE(D, F, 4),
        "AutoEncoderTopK": lambda: top_k.AutoEncoderTopK(D, F, 4),
        "AutoEncoder": lambda: classes.AutoEncoder(D, F),
        "JumpReluAutoEncoder": lambda: classes.JumpReluAutoEncoder(D, F),
    }[kind]()
    with torch.no_grad():
        for name, value in (*made.named_parameters(), *made.named_buffers()):
            if name == "threshold":
                value.copy_(0.2 + torch.rand(value.shape))
            elif value.is_floating_point() and value.ndim == 1:
                value.normal_()
    return made


@pytest.mark.parametrize(
    "kind", ["MatryoshkaBatchTopKSAE", "BatchTopKSAE", "AutoEncoderTopK", "AutoEncoder", "JumpReluAutoEncoder"]
)
def test_files_of_dictionary_learning_are_read(tmp_path, x, kind):
    theirs = _theirs(kind)
    torch.save(theirs.state_dict(), tmp_path / "ae.pt")
    (tmp_path / "config.json").write_text(json.dumps({"trainer": {"dict_class": kind}}))
    found = formats.load(tmp_path)
    with torch.no_grad():
        features = theirs.encode(torch.from_numpy(x))
        check_same_features(found, x, features, theirs.decode(features))
    assert found.meta["normalization"] == 1
    if kind == "AutoEncoderTopK":
        assert found.threshold == -1  # the file's own one is what its trainer tracked, and is not applied
    if kind == "MatryoshkaBatchTopKSAE":
        assert (found.group_sizes, found.k) == (GROUPS, 4)
        (tmp_path / "config.json").unlink()
        assert formats.load(tmp_path / "ae.pt").group_sizes == GROUPS


def test_a_file_of_an_unknown_class_is_refused(tmp_path):
    torch.save(_theirs("AutoEncoderTopK").state_dict(), tmp_path / "ae.pt")
    with pytest.raises(UserError, match="the config.json that says which is missing"):
        formats.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"trainer": {"dict_class": "GatedAutoEncoder"}}))
    with pytest.raises(UserError, match="is of class GatedAutoEncoder"):
        formats.load(tmp_path)


def test_the_layout_of_maira_2_sae_is_read(tmp_path, x):
    """What its trainer saves: a state dict of CUDA's tensors in torch's order, the configuration without a buffer."""
    theirs = _theirs("MatryoshkaBatchTopKSAE")
    groups = [F // 2, F // 4, F // 8, F // 16, F // 16]
    state = dict(theirs.state_dict()) | {"group_sizes": torch.tensor(groups)}
    torch.save(state, tmp_path / "ae.pt")
    assert not state["W_enc"].is_contiguous()
    trainer = {
        "trainer_class": "MatryoshkaBatchTopKTrainer",
        "dict_class": "MatryoshkaBatchTopKSAE",
        "k": 4, "layer": 15, "lm_name": "microsoft/maira-2", "group_sizes": groups, "activation_dim": D, "dict_size": F,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps({"trainer": trainer}))
    found = formats.load(tmp_path)
    assert found.group_sizes == tuple(groups)
    assert found.meta["dictionary_learning"]["layer"] == 15
    with torch.no_grad():
        features = theirs.encode(torch.from_numpy(x))
        check_same_features(found, x, features, theirs.decode(features))


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda s: s.pop("threshold"), "lacks threshold"),
        (lambda s: s.update(b_enc=torch.zeros(3)), "no b_enc of shape"),
        (lambda s: s.update(group_sizes=torch.tensor([1, 2])), "groups of"),
        (lambda s: s["b_dec"].fill_(float("nan")), "not finite"),
    ],
)
def test_ae_pt_that_does_not_fit(tmp_path, sae, change, message):
    dictionary_learning.save(tmp_path, sae)
    state = torch.load(tmp_path / "ae.pt", weights_only=True)
    change(state)
    torch.save(state, tmp_path / "ae.pt")
    with pytest.raises(UserError, match=message):
        formats.load(tmp_path)

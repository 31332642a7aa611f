"""Files in the programs that they are for, and theirs here: the same features and reconstructions."""

import itertools
import json

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from maira_jax.errors import UserError
from sae import formats
from sae.autoencoder import Sae
from tests.helpers import peers
from tests.helpers.sae import activations, random_sae

D, F, GROUPS, FACTOR = 24, 96, (48, 24, 12, 6, 6), 5.5
META = {
    "normalization": FACTOR,
    "source": {"site": "language.3.resid_post", "checkpoint": "phantom", "token_filter": "method"},
    "train": {"lr": 1e-3, "steps": 10, "batch_size": 64},
    "sae": {"group_weights": [0.2] * 5},
}


@pytest.fixture(scope="module")
def x() -> np.ndarray:
    return activations(200, D)


@pytest.fixture(scope="module")
def sae(x) -> Sae:
    return random_sae(x, GROUPS, 4, 0.75, meta=META)


def check_same_features(ours: Sae, x: np.ndarray, features: torch.Tensor, reconstruction: torch.Tensor) -> None:
    f = ours.encode(jnp.asarray(x))
    assert 200 < (features.numpy() > 0).sum() < features.numel()
    np.testing.assert_allclose(f, features, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(ours.decode(f), reconstruction, rtol=1e-4, atol=1e-4)


# dictionary_learning


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
    same = ("trainer_class", "dict_class", "layer", "lm_name", "k", "group_sizes", "group_weights", "top_k_aux")
    for name in same:
        assert config["trainer"][name] == trainer.config[name], name
    assert config["trainer"]["norm_factor"] == FACTOR
    assert config["buffer"]["d_submodule"] == D


def test_dictionary_learning_gives_the_same_features(tmp_path, sae, x):
    formats.writers()["dictionary_learning"].save(tmp_path, sae)
    dictionary, config = peers.dictionary_learning("utils").load_dictionary(str(tmp_path), "cpu")
    with torch.no_grad():
        reconstruction, features = dictionary(torch.from_numpy(x), output_features=True)
    check_same_features(sae, x, features, reconstruction)


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


# SAELens


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
        check_same_features(formats.load(tmp_path), x, features, theirs.decode(features))


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


# sparsify and Gemma Scope, whose files are written here as theirs are


def test_files_of_sparsify_are_read(tmp_path, sae, x):
    p = {name: np.asarray(value) for name, value in sae.params.items()}
    arrays = {
        "encoder.weight": np.ascontiguousarray(p["W_enc"].T), "encoder.bias": p["b_enc"], "W_dec": p["W_dec"],
        "b_dec": p["b_dec"],
    }  # fmt: skip
    save_file(arrays, tmp_path / "sae.safetensors")
    config = {"activation": "topk", "expansion_factor": 4, "num_latents": 0, "k": 5, "skip_connection": False}
    (tmp_path / "cfg.json").write_text(json.dumps(config | {"d_in": D}))
    found = formats.load(tmp_path)
    z = np.maximum((x - p["b_dec"]) @ p["W_enc"] + p["b_enc"], 0)
    cut = np.sort(z, axis=1)[:, -5:-4]
    np.testing.assert_allclose(found.encode(jnp.asarray(x)), np.where(z >= cut, z, 0), rtol=1e-4, atol=1e-4)
    (tmp_path / "cfg.json").write_text(json.dumps(config | {"skip_connection": True}))
    with pytest.raises(UserError, match="transcoder"):
        formats.load(tmp_path)


@pytest.mark.parametrize("version", [1, 2])
def test_files_of_gemma_scope_are_read(tmp_path, sae, x, version):
    """Their encoder does not subtract b_dec."""
    arrays = {name: np.asarray(value) for name, value in sae.params.items()}
    arrays["threshold"] = np.random.default_rng(1).uniform(0.5, 2, F).astype(np.float32)
    if version == 1:
        np.savez(tmp_path / "params.npz", **arrays)
    else:
        save_file({name.lower(): array for name, array in arrays.items()}, tmp_path / "params.safetensors")
    z = np.maximum(x @ arrays["W_enc"] + arrays["b_enc"], 0)
    f = np.where(z > arrays["threshold"], z, 0)
    found = formats.load(tmp_path)
    np.testing.assert_allclose(found.encode(jnp.asarray(x)), f, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found.decode(f), f @ arrays["W_dec"] + arrays["b_dec"], rtol=1e-4, atol=1e-4)
    # It goes on as a file of SAELens, and comes back.
    formats.writers()["saelens"].save(tmp_path / "saelens", found)
    again = formats.load(tmp_path / "saelens")
    np.testing.assert_array_equal(again.threshold, arrays["threshold"])
    assert set(load_file(tmp_path / "saelens" / "sae_weights.safetensors")) == {*sae.params, "threshold"}


def test_a_pickle_in_gemma_scope_is_refused(tmp_path):
    np.savez(tmp_path / "params.npz", W_enc=np.array([{"a": 1}], object))
    with pytest.raises(UserError, match="damaged"):
        formats.load(tmp_path)

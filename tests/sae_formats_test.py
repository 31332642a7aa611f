"""Exports in other programs, and what is read back or refused."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from configs import phantom
from maira_jax.errors import UserError
from maira_jax.run.stage import Stage
from sae import autoencoder, export, formats
from sae.autoencoder import Sae
from sae.checkpoint import load_sae, save_sae
from tests import peers
from tests.sae_helpers import activations

D, F, GROUPS, FACTOR = 24, 96, (48, 24, 12, 6, 6), 5.5
META = {
    "normalization": FACTOR,
    "source": {"site": "language.3.resid_post", "checkpoint": "phantom", "policy": "method"},
    "train": {"lr": 1e-3, "steps": 10, "batch_size": 64},
    "sae": {"group_weights": [0.2] * 5},
}


@pytest.fixture(scope="module")
def x() -> np.ndarray:
    return activations(200, D)


@pytest.fixture(scope="module")
def sae(x) -> Sae:
    params = autoencoder.init(jax.random.key(1), D, F, jnp.asarray(x.mean(0)))
    params["b_enc"] = jnp.asarray(np.random.default_rng(0).normal(size=F), jnp.float32)
    return Sae(params, 0.75, 4, GROUPS, META)


def check_same(found: Sae, expected: Sae, rtol: float = 0.0) -> None:
    assert (found.k, found.group_sizes) == (expected.k, expected.group_sizes)
    np.testing.assert_allclose(found.threshold, expected.threshold, rtol=rtol)
    for name, value in expected.params.items():
        np.testing.assert_allclose(found.params[name], value, rtol=rtol, err_msg=name)


@pytest.mark.parametrize("fold", [True, False])
@pytest.mark.parametrize("name", ["safetensors", "dictionary_learning"])
def test_round_trip(tmp_path, sae, name, fold):
    export.WRITERS[name](tmp_path / "there", sae, fold)
    # Unfolded biases are divided and multiplied again: two roundings.
    found = formats.load(tmp_path / "there")
    check_same(found, sae, rtol=0 if fold else 3e-7)
    assert found.meta["normalization"] == FACTOR


def test_unfolded_export_takes_normalised_activations(tmp_path, sae, x):
    formats.save_dictionary_learning(tmp_path, sae, fold_normalization=False)
    state = torch.load(tmp_path / "ae.pt", weights_only=True)
    params = {name: jnp.asarray(state[name].numpy()) for name in sae.params}
    f = autoencoder.encode(params, jnp.asarray(x) / FACTOR, float(state["threshold"]))
    np.testing.assert_allclose(FACTOR * f, sae.encode(jnp.asarray(x)), rtol=1e-4, atol=1e-4)


def test_ae_pt_is_what_dictionary_learning_writes(tmp_path, sae):
    module = peers.dictionary_learning("trainers.matryoshka_batch_top_k")
    theirs = module.MatryoshkaBatchTopKSAE(D, F, 4, list(GROUPS)).state_dict()
    formats.save_dictionary_learning(tmp_path, sae)
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
    formats.save_dictionary_learning(tmp_path, sae)
    config = json.loads((tmp_path / "config.json").read_text())
    assert set(config["trainer"]) == set(trainer.config) | {"norm_factor", "norm_folded"}
    same = ("trainer_class", "dict_class", "layer", "lm_name", "k", "group_sizes", "group_weights", "top_k_aux")
    for name in same:
        assert config["trainer"][name] == trainer.config[name], name
    assert config["trainer"]["norm_factor"] == FACTOR
    assert config["buffer"]["d_submodule"] == D


def test_dictionary_learning_gives_the_same_features(tmp_path, sae, x):
    formats.save_dictionary_learning(tmp_path, sae)
    dictionary, config = peers.dictionary_learning("utils").load_dictionary(str(tmp_path), "cpu")
    with torch.no_grad():
        reconstruction, features = dictionary(torch.from_numpy(x), output_features=True)
    ours = sae.encode(jnp.asarray(x))
    assert (features.numpy() > 0).sum() > 200
    np.testing.assert_allclose(ours, features, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(sae.decode(ours), reconstruction, rtol=1e-4, atol=1e-4)


def test_a_file_of_dictionary_learning_is_read(tmp_path, x):
    module = peers.dictionary_learning("trainers.matryoshka_batch_top_k")
    theirs = module.MatryoshkaBatchTopKSAE(D, F, 4, list(GROUPS))
    theirs.threshold.fill_(0.3)
    torch.save(theirs.state_dict(), tmp_path / "ae.pt")
    found = formats.load(tmp_path / "ae.pt")
    assert found.group_sizes == GROUPS
    with torch.no_grad():
        np.testing.assert_allclose(
            found.encode(jnp.asarray(x)), theirs.encode(torch.from_numpy(x)), rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("name, file", [("safetensors", "sae.safetensors"), ("dictionary_learning", "ae.pt")])
@pytest.mark.parametrize("damage", [lambda c: c[: len(c) // 2], lambda c: b"", lambda c: b"\xff" * 64 + c[64:]])
def test_damaged_files(tmp_path, sae, name, file, damage):
    export.WRITERS[name](tmp_path, sae)
    path = tmp_path / file
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=file) as caught:
        formats.load(path)
    assert "\n" not in str(caught.value)


class _Malicious:
    def __reduce__(self):
        return (print, ("executed",))


def test_no_object_is_unpickled(tmp_path, capsys):
    torch.save({"W_enc": _Malicious()}, tmp_path / "ae.pt")
    with pytest.raises(UserError, match="cannot be read as tensors"):
        formats.load(tmp_path / "ae.pt")
    assert "executed" not in capsys.readouterr().out


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
    formats.save_dictionary_learning(tmp_path, sae)
    state = torch.load(tmp_path / "ae.pt", weights_only=True)
    change(state)
    torch.save(state, tmp_path / "ae.pt")
    with pytest.raises(UserError, match=message):
        formats.load(tmp_path)


def test_paths_that_hold_no_autoencoder(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        formats.load(tmp_path / "nothing.pt")
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(UserError, match="not a known format"):
        formats.load(tmp_path / "notes.txt")
    with pytest.raises(UserError, match="sae.json"):
        formats.load(tmp_path)


def test_the_stage(tmp_path, sae):
    with Stage(tmp_path, "sae", {}) as stage:
        save_sae(stage.dir, sae)
        stage.finish({})
    config = phantom.get_config()
    config.export.to = ("safetensors", "dictionary_learning")
    counts = export.run(config, tmp_path)
    assert set(counts) == {
        "safetensors/sae.safetensors",
        "dictionary_learning/ae.pt",
        "dictionary_learning/config.json",
    }
    stored = load_sae(tmp_path / "sae")
    check_same(stored, sae)
    check_same(formats.load(tmp_path / "export" / "safetensors"), stored)
    check_same(formats.load(tmp_path / "export" / "dictionary_learning"), stored)
    # The same autoencoder gives the same files, whatever the process.
    assert export.run(config, tmp_path) == counts
    config.export.to = ("onnx",)
    with pytest.raises(UserError, match="onnx"):
        export.run(config, tmp_path)


def test_without_torch_safetensors_work_and_ae_pt_says_what_to_do(tmp_path, sae):
    formats.save_safetensors(tmp_path, sae)
    script = (
        "import sys; sys.modules['torch'] = None\n"
        "from sae import formats; from maira_jax.errors import UserError\n"
        "loaded = formats.load(sys.argv[1])\n"
        "try: formats.save_dictionary_learning(sys.argv[1], loaded)\n"
        "except UserError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True)
    assert "pip install 'maira-jax[export]'" in done.stdout

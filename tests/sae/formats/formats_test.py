"""Exports in other programs, and what is read back or refused."""

import collections
import dataclasses
import functools
import pickle
import shutil
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from configs import phantom
from maira_jax.errors import UserError
from maira_jax.run import files
from maira_jax.run.stage import Stage
from sae import autoencoder, formats
from sae.autoencoder import Sae
from sae.formats import dictionary_learning, export, model_card, torch_file
from sae.saved import load_sae, save_sae
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


def check_same(found: Sae, expected: Sae, rtol: float = 0.0) -> None:
    assert (found.k, found.group_sizes, found.per_token) == (expected.k, expected.group_sizes, expected.per_token)
    np.testing.assert_allclose(found.threshold, expected.threshold, rtol=rtol)
    for name, value in expected.params.items():
        np.testing.assert_allclose(found.params[name], value, rtol=rtol, err_msg=name)


@pytest.mark.parametrize(
    "name, fold",
    [("safetensors", True), ("safetensors", False), ("dictionary_learning", True), ("dictionary_learning", False),
     ("saelens", True)],
)  # fmt: skip
@pytest.mark.parametrize("per_token", [False, True])
def test_round_trip(tmp_path, sae, name, fold, per_token):
    sae = dataclasses.replace(sae, group_sizes=(F,), threshold=-1.0, per_token=True) if per_token else sae
    formats.writers()[name].save(tmp_path / "there", sae, fold)
    # Unfolded biases are divided and multiplied again: two roundings.
    found = formats.load(tmp_path / "there")
    check_same(found, sae, rtol=0 if fold else 3e-7)
    assert found.meta["normalization"] == FACTOR


@pytest.mark.parametrize("name", ["safetensors", "saelens"])
def test_a_threshold_for_each_feature(tmp_path, sae, x, name):
    limits = np.random.default_rng(3).uniform(0.2, 1.5, F).astype(np.float32)
    sae = dataclasses.replace(sae, threshold=limits)
    formats.writers()[name].save(tmp_path, sae, True)
    found = formats.load(tmp_path)
    np.testing.assert_array_equal(found.threshold, limits)
    z = np.maximum(np.asarray(autoencoder.pre_activations(sae.params, jnp.asarray(x))), 0)
    np.testing.assert_allclose(found.encode(jnp.asarray(x)), np.where(z > limits, z, 0), rtol=1e-5, atol=1e-5)
    with pytest.raises(UserError, match="one threshold for all features"):
        dictionary_learning.save(tmp_path / "other", sae)


def test_saelens_takes_raw_activations_only(tmp_path, sae):
    with pytest.raises(UserError, match="no field for a normalisation factor"):
        formats.writers()["saelens"].save(tmp_path / "there", sae, False)
    assert not (tmp_path / "there").exists()


def test_unfolded_export_takes_normalised_activations(tmp_path, sae, x):
    dictionary_learning.save(tmp_path, sae, fold_normalization=False)
    state = torch.load(tmp_path / "ae.pt", weights_only=True)
    params = {name: jnp.asarray(state[name].numpy()) for name in sae.params}
    f = autoencoder.encode(params, jnp.asarray(x) / FACTOR, float(state["threshold"]))
    np.testing.assert_allclose(FACTOR * f, sae.encode(jnp.asarray(x)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "name, file",
    [
        ("safetensors", "sae.safetensors"),
        ("dictionary_learning", "ae.pt"),
        ("saelens", "sae_weights.safetensors"),
    ],
)
@pytest.mark.parametrize("damage", [lambda c: c[: len(c) // 2], lambda c: b"", lambda c: b"\xff" * 64 + c[64:]])
def test_damaged_files(tmp_path, sae, name, file, damage):
    formats.writers()[name].save(tmp_path, sae)
    path = tmp_path / file
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=file) as caught:
        formats.load(path)
    assert "\n" not in str(caught.value)


class _Malicious:
    def __reduce__(self):
        return (print, ("executed",))


class _MaliciousState:
    """Smuggles its call into the state of an object that may be read."""

    def __reduce__(self):
        return (collections.OrderedDict, (), {"_metadata": _Malicious()})


@pytest.mark.parametrize(
    "value", [_Malicious(), _MaliciousState(), [torch.zeros(2), _Malicious()], torch.nn.Linear(2, 2)]
)
def test_no_object_is_unpickled(tmp_path, capsys, value):
    torch.save({"W_enc": value}, tmp_path / "ae.pt")
    with pytest.raises(UserError, match="cannot be read as tensors"):
        formats.load(tmp_path / "ae.pt")
    assert "executed" not in capsys.readouterr().out


def test_tensors_of_torch_are_read_without_torch(tmp_path):
    layer = torch.nn.Linear(4, 6)
    half = layer.weight.detach().to(torch.bfloat16)
    saved = {
        "state": layer.state_dict(),
        "parameter": layer.weight,
        "view": layer.weight.detach().T[1:, 2:5],
        "half": half.T,
        "scalar": torch.tensor(7, dtype=torch.int32),
        "empty": torch.zeros(0, 3),
        "plain": (1, "text", None, 0.5),
    }
    torch.save(saved, tmp_path / "ae.pt")
    found = torch_file.read(tmp_path / "ae.pt")
    np.testing.assert_array_equal(found["state"]["bias"], layer.bias.detach().numpy())
    np.testing.assert_array_equal(found["parameter"], layer.weight.detach().numpy())
    np.testing.assert_array_equal(found["view"], saved["view"].numpy())
    np.testing.assert_array_equal(found["half"].astype(np.float32), half.T.float().numpy())
    assert (found["scalar"], found["empty"].shape, found["plain"]) == (7, (0, 3), saved["plain"])


def test_torch_reads_what_is_written(tmp_path):
    rng = np.random.default_rng(0)
    written = {
        "rows": rng.normal(size=(3, 5)).astype(np.float32),
        "columns": np.asfortranarray(rng.normal(size=(300, 500)).astype(np.float32)),
        "gaps": rng.normal(size=(4, 6))[:, ::2],
        "scalar": np.asarray(4, np.int32),
        "many": np.arange(70_000),
    }
    torch_file.write(tmp_path / "ae.pt", written)
    for options in ({"weights_only": True}, {"weights_only": False}, {"weights_only": True, "mmap": True}):
        found = torch.load(tmp_path / "ae.pt", **options)
        for name, array in written.items():
            np.testing.assert_array_equal(found[name].numpy(), array, err_msg=name)
    assert found["columns"].stride() == (1, 300)
    again = torch_file.read(tmp_path / "ae.pt")
    assert all((again[name] == array).all() for name, array in written.items())


@pytest.mark.parametrize("layout", ["beyond", "overlap", "negative"])
def test_tensors_stay_inside_their_bytes(tmp_path, monkeypatch, layout):
    monkeypatch.setattr(torch_file, "_tensor", functools.partial(_crooked, layout))
    torch_file.write(tmp_path / "ae.pt", {"W_enc": np.ones(16, np.float32)})
    with pytest.raises(UserError, match="cannot be read as tensors"):
        torch_file.read(tmp_path / "ae.pt")


def _crooked(layout, key, array):
    """The description of a tensor that reaches beyond its bytes, is larger than they are, or starts before them."""
    offset, shape, strides = {"beyond": (9, 8, 1), "overlap": (0, 2**40, 0), "negative": (-4, 8, 1)}[layout]
    number, pair = torch_file._number, torch_file._tuple
    storage = pair(
        torch_file._text("storage"), torch_file._name("torch", "FloatStorage"), torch_file._text(key),
        torch_file._text("cpu"), number(array.size),
    )  # fmt: skip
    hooks = torch_file._name("collections", "OrderedDict") + pickle.EMPTY_TUPLE + pickle.REDUCE
    arguments = pair(
        storage + pickle.BINPERSID, number(offset), pair(number(shape)), pair(number(strides)), pickle.NEWFALSE, hooks
    )
    return torch_file._name("torch._utils", "_rebuild_tensor_v2") + arguments + pickle.REDUCE


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


def test_paths_that_hold_no_autoencoder(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        formats.load(tmp_path / "nothing.pt")
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(UserError, match="not of a known format"):
        formats.load(tmp_path / "notes.txt")
    with pytest.raises(UserError, match="sae.json"):
        formats.load(tmp_path)


METRICS = {
    "tokens": 1200, "fvu": 0.125, "explained_variance": 0.875, "cosine": 0.9, "l0": 4.0, "dead": 3, "dense": 1,
    "prefixes": [{"features": 48, "fvu": 0.25, "l0": 2.5}, {"features": 96, "fvu": 0.125, "l0": 4.0}],
}  # fmt: skip


def test_the_stage(tmp_path, sae):
    for folder in ("sae", "sae-x2"):
        with Stage(tmp_path, folder, {"sae": {"k": 4}}) as stage:
            save_sae(stage.dir, sae)
            files.write_json(stage.dir / "metrics.json", METRICS)
            stage.finish({})
    config = phantom.get_config()
    config.sae.beside = {"x2": {"expansion": 2}}
    counts = export.run(config, tmp_path)
    assert (
        {path.removeprefix("x2/") for path in counts if path.startswith("x2/")}
        == {path for path in counts if not path.startswith("x2/")}
        == {
            "dictionary_learning/README.md",
            "dictionary_learning/ae.pt",
            "dictionary_learning/config.json",
            "saelens/README.md",
            "saelens/cfg.json",
            "saelens/sae_weights.safetensors",
            "safetensors/README.md",
            "safetensors/sae.safetensors",
        }
    )
    stored = load_sae(tmp_path / "sae")
    check_same(stored, sae)
    for name in formats.writers():
        check_same(formats.load(tmp_path / "export" / name), stored)
    # The same autoencoder gives the same files, whatever the process.
    shutil.move(tmp_path / "export", tmp_path / "moved")
    assert export.run(config, tmp_path) == counts
    config.export.to = ("onnx",)
    with pytest.raises(UserError, match="onnx"):
        export.run(config, tmp_path)


def test_the_card_says_what_is_there(tmp_path, sae):
    losses = {"tokens": 900, "ce": 1.5, "ce_spliced": 1.75, "ce_zero": 9.5, "ce_mean": 3.5,
              "recovered_zero": 0.96875, "recovered_mean": 0.875}  # fmt: skip
    text = model_card.text(
        sae, formats.writers()["saelens"], True, METRICS | {"loss": losses}, {"section": {"sae": {"k": 4}}}
    )
    assert text.startswith("---\nlibrary_name: saelens\n")
    for line in (
        "| site | language.3.resid_post |",
        "| features | 96 in groups of 48, 24, 12, 6, 6 |",
        "| threshold | 0.75 |",
        "| normalisation factor | 5.5 |",
        "| fraction of variance unexplained | 0.1250 |",
        "| 48 | 0.2500 | 2.50 |",
        "| loss recovered, against zero ablation | 0.9688 |",
        '"section": {',
    ):
        assert line in text, line
    assert "divided by 5.5" in model_card.text(sae, formats.writers()["safetensors"], False, METRICS, {})


def test_torch_is_not_needed(tmp_path, sae):
    script = (
        "import sys; sys.modules['torch'] = None\n"
        "from pathlib import Path; from sae import formats\n"
        "first, second = Path(sys.argv[1]), Path(sys.argv[2])\n"
        "for name, writer in formats.writers().items(): writer.save(second / name, formats.load(first), True)\n"
    )
    dictionary_learning.save(tmp_path / "first", sae)
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "first"), str(tmp_path / "second")], check=True)
    for name in formats.writers():
        check_same(formats.load(tmp_path / "second" / name), sae)

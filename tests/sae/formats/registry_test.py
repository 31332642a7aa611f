"""How files are recognised, read back and refused, whatever their format; and a format that a user adds."""

import dataclasses
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from configs import phantom
from maira_jax.errors import UserError
from sae import autoencoder, formats
from sae.formats import FORMATS, FormatWriter, SaeFormat, dictionary_learning, export, raw_units
from tests.helpers.formats import FACTOR, F, check_same, finished_sae
from tests.helpers.paths import ROOT


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


def test_a_header_of_another_format_is_refused(tmp_path, sae):
    formats.writers()["safetensors"].save(tmp_path, sae, True)
    path = tmp_path / "sae.safetensors"
    path.write_bytes(path.read_bytes().replace(b"maira-jax-sae", b"maira-jax-sad"))
    with pytest.raises(UserError, match="has no autoencoder header: give a file that launch.export wrote"):
        formats.load(path)


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


def test_paths_that_hold_no_autoencoder(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        formats.load(tmp_path / "nothing.pt")
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(UserError, match="not of a known format"):
        formats.load(tmp_path / "notes.txt")
    with pytest.raises(UserError, match="sae.json"):
        formats.load(tmp_path)


def test_every_writer_keeps_what_decides_the_features_and_needs_no_torch(tmp_path, sae):
    first, second = tmp_path / "first", tmp_path / "second"
    dictionary_learning.save(first, sae)
    command = [sys.executable, "-m", "tests.helpers.write_without_torch", str(first), str(second)]
    subprocess.run(command, check=True, cwd=ROOT)
    for name in formats.writers():
        check_same(formats.load(second / name), sae)


def test_a_format_that_a_user_adds(tmp_path, sae, monkeypatch):
    """One registration: the export stage writes the format, its card describes it, and `load` recognises it."""

    def save(directory, sae, fold_normalization):
        directory.mkdir(parents=True)
        np.savez(directory / "toy.npz", k=sae.k, threshold=sae.threshold, **sae.params)

    def load(path):
        with np.load(path) as file:
            arrays = {name: file[name] for name in raw_units.ARRAYS}
            return raw_units.imported(path, arrays, threshold=file["threshold"], k=int(file["k"]), meta={"toy": True})

    monkeypatch.setattr(FORMATS, "_entries", dict(FORMATS._entries))
    writer = FormatWriter(save, library="toy", usage="sae = toy.load(FOLDER)")
    FORMATS.register("toy")(SaeFormat("Toy", files=("toy.npz",), load=load, writer=writer))

    stored = dataclasses.replace(sae, group_sizes=(F,))
    finished_sae(tmp_path / "run", "sae", stored)
    config = phantom.get_config()
    config.export.to = ("toy", "saelens")
    counts = export.run(config, tmp_path / "run")
    assert {"toy/toy.npz", "toy/README.md"} < counts.keys()
    card = (tmp_path / "run" / "export" / "toy" / "README.md").read_text()
    assert "library_name: toy" in card and "sae = toy.load(FOLDER)" in card
    found = formats.load(tmp_path / "run" / "export" / "toy")
    check_same(found, stored)
    assert found.meta["toy"] is True


def test_a_companion_distinguishes_formats_that_share_a_file_name(tmp_path, sae, monkeypatch):
    monkeypatch.setattr(FORMATS, "_entries", dict(FORMATS._entries))
    other = SaeFormat("Other", files=("sae.safetensors",), companion="other.json", load=lambda path: "other")
    FORMATS.register("other")(other)
    formats.writers()["safetensors"].save(tmp_path, sae, True)
    check_same(formats.load(tmp_path), sae)
    (tmp_path / "other.json").write_text("{}")
    assert formats.load(tmp_path) == formats.load(tmp_path / "sae.safetensors") == "other"

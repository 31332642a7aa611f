"""Converted parameters on disk."""

import json
import shutil

import jax
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from maira_jax.checkpoint import convert, store
from maira_jax.errors import UserError
from maira_jax.model.sites import Site
from tests.helpers.random_checkpoint import flip_lowest_bit, model_section

FLOAT32, BFLOAT16 = convert.DTYPES["float32"], convert.DTYPES["bfloat16"]


def test_damage_after_the_conversion_is_found_on_loading(flax, tmp_path):
    shutil.copytree(flax, tmp_path / "flax")
    arrays = tmp_path / "flax" / "params" / "state"
    zarr = json.loads((arrays / "language.layers.gate_up.kernel" / "zarr.json").read_text())
    assert zarr["chunk_grid"]["configuration"]["chunk_shape"] == [1, 64, 1, 172 // 4]
    store.load(tmp_path / "flax")
    flip_lowest_bit(next((arrays / "language.layers.gate_up.kernel").rglob("c/7/0/1/2")))
    with pytest.raises(UserError, match="damaged or incomplete"):
        store.load(tmp_path / "flax")
    shutil.rmtree(arrays / "language.layers.gate_up.kernel" / "c" / "7")
    with pytest.raises(UserError, match="damaged or incomplete"):
        store.load(tmp_path / "flax")


def test_orbax_itself_can_load_it(random_dir, flax):
    loaded = ocp.load(flax / "params")
    ours, cfg = store.load(flax)
    assert loaded["language"]["embed"].shape[0] == cfg.text.vocab_size == 503 < len(ours["language"]["embed"]) == 512
    stored = jax.tree.map(lambda ours, theirs: ours[tuple(map(slice, theirs.shape))], ours, loaded)
    jax.tree.map(np.testing.assert_array_equal, loaded, stored)
    jax.tree.map(np.testing.assert_array_equal, convert.to_flax(random_dir, cfg, FLOAT32), ours)


def test_a_disk_that_is_too_small_is_named_at_once(random_dir, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1_000_000))
    with pytest.raises(UserError, match="0.0 GB free, but the model takes 0.0 GB"):
        convert.run(model_section(random_dir), tmp_path, tmp_path / "flax")
    assert not (tmp_path / "flax").exists()


def test_an_older_form_is_refused(tmp_path):
    (tmp_path / "params" / "state" / "language.layers.query.kernel").mkdir(parents=True)
    with pytest.raises(UserError, match=r"was converted by an older version: delete it and run launch\.convert again"):
        store.load(tmp_path)


def test_pieces_make_up_the_parameters(flax, monkeypatch):
    whole, cfg = store.load(flax)
    monkeypatch.setattr(store, "_PIECE", 1 << 12)
    monkeypatch.setattr(store, "_READ_AHEAD", 1 << 14)
    jax.tree.map(np.testing.assert_array_equal, store.load(flax)[0], whole)
    first, _ = store.load(flax, stop=Site.parse("language.2.resid_mid", cfg))
    assert first["language"].keys() == {"embed", "layers"}
    jax.tree.map(
        lambda part, stack: np.testing.assert_array_equal(part, stack[:3]),
        first["language"]["layers"],
        whole["language"]["layers"],
    )
    jax.tree.map(np.testing.assert_array_equal, first["vision"], whole["vision"])

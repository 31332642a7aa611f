"""The streaming exemplar index against a slow oracle that holds everything in memory."""

import dataclasses
import subprocess
import sys

import jax
import ml_dtypes
import numpy as np
import pytest

from interp.exemplars import index
from interp.exemplars.index_pass import (
    blocks,
    by_entries,
    by_tiles,
    device_pass,
    device_program,
    running_index,
    shared_sae,
)
from interp.exemplars.index_pass.pass_parts import PassParts
from maira_jax.errors import UserError
from maira_jax.inputs.tokens import Kind
from maira_jax.run import processes
from sae.autoencoder import Sae
from tests.helpers.exemplar_world import build
from tests.helpers.paths import ROOT

ROUTES = {"list": None, "tiles": by_tiles.Tiles(max_length=12, features=8)}


def assert_equal(one, other):
    """All fields of two indices are equal."""
    for name in index.SPLITS:
        for field in dataclasses.fields(index.SplitIndex):
            got, expected = (getattr(found[name], field.name) for found in (one, other))
            np.testing.assert_array_equal(got, expected, err_msg=f"{name} {field.name}")


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("block_tokens", [64, 512])
def test_index_equals_the_oracle(world, block_tokens, route):
    found, study_peak = build(world, block_tokens, route=ROUTES[route])
    contexts, held_out, peak, f = (world[key] for key in ("contexts", "held_out", "peak", "f"))
    for split, name in enumerate(index.SPLITS):
        numbers = np.flatnonzero(held_out[contexts.study] == bool(split))
        rows, _ = contexts.rows(numbers)
        got = found[name]
        assert got.total_contexts == len(numbers) and got.total_tokens == len(rows)
        for feature in range(24):
            active = numbers[peak[numbers, feature] > 0]
            assert got.n_contexts[feature] == len(active)
            strongest = active[np.argsort(-peak[active, feature], kind="stable")][:5]
            assert got.top_context[feature][: len(strongest)].tolist() == strongest.tolist()
            np.testing.assert_allclose(got.top_peak[feature][: len(strongest)], peak[strongest, feature], rtol=1e-5)
            priority = running_index.hash_uniform(active, np.array([feature]), 3)
            sample = active[np.argsort(-priority, kind="stable")][:40]
            kept = got.sample_context[feature][got.sample_context[feature] >= 0]
            assert kept.tolist() == sample.tolist()
            expected = np.histogram(peak[active, feature], np.concatenate([[0], running_index.EDGES, [np.inf]]))[0]
            assert got.histogram[feature].tolist() == expected.tolist()
            active_rows = f[rows][:, feature] > 0
            assert got.position_sum[feature] == world["position"][rows][active_rows].sum()
            for kind in Kind:
                in_kind = world["kind"][rows] == kind
                assert got.n_tokens[feature, kind] == (f[rows][in_kind, feature] > 0).sum()
        np.testing.assert_array_equal(got.pool_active, peak[got.pool] > 0)
        assert np.isin(got.pool, numbers).all() and len(got.pool) == len(set(got.pool.tolist()))
    findings = world["kind"] == Kind.FINDINGS
    oracle = [f[(world["study"] == s) & findings].max(0, initial=0) for s in range(len(held_out))]
    np.testing.assert_allclose(study_peak, np.stack(oracle), rtol=1e-5)


def test_index_does_not_depend_on_the_block_size(world):
    small, large = build(world, 64)[0], build(world, 1024)[0]
    for name in index.SPLITS:
        np.testing.assert_array_equal(small[name].sample_context, large[name].sample_context)
        np.testing.assert_array_equal(small[name].top_context, large[name].top_context)


def test_sample_is_uniform_over_the_contexts():
    """Over many features that fire everywhere, every context is sampled equally often (chi-square, 5 sigma)."""
    features, numbers = np.arange(4000), np.arange(200)
    priority = running_index.hash_uniform(numbers[None], features[:, None], 7)
    counts = np.bincount(np.argsort(-priority, axis=1)[:, :20].ravel(), minlength=200)
    variance = 4000 * 0.1 * 0.9
    statistic = ((counts - 400) ** 2 / variance).sum()
    assert abs(statistic - 200) < 5 * np.sqrt(2 * 200)


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("kind", ["a threshold a feature", "the largest of each token"])
def test_every_kind_of_autoencoder_is_indexed_as_it_encodes(world, kind, route):
    threshold = np.linspace(0.2, 1.5, 24).astype(np.float32) if kind == "a threshold a feature" else -1.0
    sae = Sae(world["sae"].params, threshold, 3, (24,), per_token=kind != "a threshold a feature")
    f = np.asarray(sae.encode(world["x"]))
    found, _ = build(world | {"sae": sae}, 512, route=ROUTES[route])
    rows = world["held_out"][world["study"]]
    for name, mask in (("train", ~rows), ("held_out", rows)):
        np.testing.assert_array_equal(found[name].n_tokens.sum(1), (f[mask] > 0).sum(0))


@pytest.mark.parametrize("tile", [pytest.param(24, marks=pytest.mark.drill), 3])
def test_tiles_give_exactly_what_the_list_gives(world, tile):
    for block_tokens in (64, 512):
        one, one_peak = build(world, block_tokens)
        other, other_peak = build(world, block_tokens, route=by_tiles.Tiles(12, tile))
        assert_equal(other, one)
        np.testing.assert_array_equal(other_peak, one_peak)


@pytest.mark.parametrize("route", ROUTES)
def test_counters_are_drained_before_they_overflow(world, monkeypatch, route):
    """With a counter so small that every block must be drained, the counts are the same."""
    whole = build(world, 64, route=ROUTES[route])[0]
    monkeypatch.setattr(device_pass, "_MAX_COUNT", 1)
    assert_equal(build(world, 64, route=ROUTES[route])[0], whole)


def test_activations_are_taken_in_the_stored_dtype(world):
    stored = world["x"].astype(ml_dtypes.bfloat16)
    one, one_peak = build(world | {"x": stored}, 512)
    other, other_peak = build(world | {"x": stored.astype(np.float32)}, 512)
    assert_equal(one, other)
    np.testing.assert_array_equal(one_peak, other_peak)


def test_blocks_with_more_active_entries_than_the_capacity_are_repeated(world, monkeypatch):
    asked = []
    entry_capacity = device_pass.entry_capacity
    monkeypatch.setattr(device_pass, "entry_capacity", lambda n, limit: asked.append(n) or entry_capacity(n, limit))
    whole, whole_peak = build(world | {"sae": dataclasses.replace(world["sae"], k=24)}, 64)
    assert not asked
    repeated, repeated_peak = build(world | {"sae": dataclasses.replace(world["sae"], k=1)}, 64)
    assert asked
    assert_equal(repeated, whole)
    np.testing.assert_array_equal(repeated_peak, whole_peak)


def test_several_devices_find_what_one_finds(tmp_path):
    command = [sys.executable, "-m", "tests.helpers.devices8.exemplar_pass", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout == "equal\n", done.stderr


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("route", ROUTES)
def test_an_interrupted_pass_resumes_at_its_last_save(world, monkeypatch, tmp_path, route):
    """It is interrupted after its second save, and goes on by the other route: what it keeps is the same."""
    whole, whole_peak = build(world, 64)
    monkeypatch.setattr(index, "_SAVE_SECONDS", 0.0)
    monkeypatch.setattr(blocks, "_BLOCKS_PER_READ", 4)
    save, saved = PassParts.save, []

    def save_and_stop(parts, contexts, found):
        save(parts, contexts, found)
        saved.append(contexts.stop)
        if len(saved) == 2:
            raise Interrupted

    monkeypatch.setattr(PassParts, "save", save_and_stop)
    with pytest.raises(Interrupted):
        build(world, 64, folder=tmp_path, route=ROUTES[route])
    monkeypatch.setattr(PassParts, "save", save)
    assert 0 < saved[0] < saved[1] < len(world["contexts"])
    with pytest.raises(UserError, match="parts holds a pass over other contexts or another autoencoder"):
        build(world | {"sae": dataclasses.replace(world["sae"], threshold=2.0)}, 64, folder=tmp_path)
    other = next(other for name, other in ROUTES.items() if name != route)
    rows_read = int(world["contexts"].start[saved[1]])
    resumed, peak = build(world, 64, folder=tmp_path, route=other, first_row=rows_read)
    assert_equal(resumed, whole)
    np.testing.assert_array_equal(peak, whole_peak)
    assert not (tmp_path / "parts").exists()


def test_parts_of_several_processes_give_what_one_process_finds(world, monkeypatch, tmp_path):
    """Twice the second of three processes ends its share, and the others are lost; then one process ends the pass.

    Samples are of few distinct priorities, so that the order of the parts decides between equal ones.
    """
    hash_uniform = running_index.hash_uniform
    for module in (running_index, by_entries, index):
        monkeypatch.setattr(module, "hash_uniform", lambda *of: hash_uniform(*of) // 0.25)
    monkeypatch.setattr(blocks, "_BLOCKS_PER_READ", 4)
    device_program.add_block.clear_cache()
    whole, whole_peak = build(world, 64)
    shares = []

    def leave(value):
        shares.append(value)
        raise Interrupted

    for _ in range(2):
        with monkeypatch.context() as patch, pytest.raises(Interrupted):
            patch.setattr(processes, "index", lambda: 1)
            patch.setattr(processes, "count", lambda: 3)
            patch.setattr(processes, "first_only", lambda run: run())
            patch.setattr(processes, "gather", leave)
            build(world, 64, folder=tmp_path)
    assert [len(share) for share in shares] == [1, 2]  # the second one lies before and after the first
    length = world["contexts"].length
    rows_saved = sum(int(length[slice(*part)].sum()) for share in shares for part in share)
    found, peak = build(world, 64, folder=tmp_path, first_row=rows_saved)
    assert_equal(found, whole)
    np.testing.assert_array_equal(peak, whole_peak)
    device_program.add_block.clear_cache()


@pytest.mark.parametrize("route", ["list", "tiles"])
def test_memory_of_the_pass_follows_the_formula(route):
    """The memory of the running index, and what a step needs besides it, as the compiler plans them."""

    def planned(n_features, n_top=5, n_sample=40, n_pool=64):
        cfg = running_index.IndexConfig(n_top, n_sample, n_pool, block_tokens=256, seed=0)
        mesh = shared_sae.feature_mesh(jax.devices()[:1], n_features)
        state, *arguments = device_program.abstract_arguments(mesh, cfg, 16, n_features)
        size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state.running))
        capacity = [kept + max(kept, 64) for kept in (n_top, n_sample)]
        counters = 4 * (2 + 2 * 2 + running_index.N_KINDS + len(running_index.EDGES) + 1)
        assert size == n_features * (8 * capacity[0] + 12 * capacity[1] + n_pool + counters)
        by = by_tiles.Tiles(32, n_features) if route == "tiles" else device_program.EntryList(4 * n_features)
        lowered = device_program.add_block.lower(state, *arguments, cfg=cfg, top_k=None, route=by, mesh=mesh)
        plan = lowered.compile().memory_analysis()
        return plan.temp_size_in_bytes / n_features

    # Besides the index a step needs a few times the block's activations, 1 KiB a feature, whatever is kept.
    assert planned(512) == pytest.approx(planned(1024), rel=0.2)
    assert planned(512) < 16 * 1024

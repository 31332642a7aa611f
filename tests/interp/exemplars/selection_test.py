"""The streaming exemplar index against a slow oracle that holds everything in memory."""

import dataclasses

import jax
import numpy as np
import pyarrow as pa
import pytest

from interp.exemplars import contexts as contexts_lib
from interp.exemplars import index, selection
from interp.exemplars.corpus import Corpus
from interp.features import lens
from maira_jax.inputs.tokens import Kind
from sae.autoencoder import Sae, encode, init

PIECES = [" lungs", " are", " clear", ".", " 2", "5", " no", "ing", "\n"]


def cut_text(pieces, study=None, position=None, kind=None, max_length=32):
    ids = np.array([PIECES.index(piece) for piece in pieces])
    n = len(ids)
    return contexts_lib.cut(
        np.zeros(n, np.int32) if study is None else np.array(study),
        np.arange(n) if position is None else np.array(position),
        ids,
        np.full(n, Kind.FINDINGS) if kind is None else np.array(kind),
        PIECES,
        max_length,
    )


def test_cut_ends_a_context_after_a_full_stop_but_not_inside_a_number():
    found = cut_text([" lungs", ".", " 2", ".", "5", " clear", ".", " no"])
    assert found.start.tolist() == [0, 2, 7]
    assert found.length.tolist() == [2, 5, 1]


def test_cut_ends_a_context_where_study_section_or_position_breaks():
    words = [" lungs"] * 6
    assert cut_text(words, study=[0, 0, 1, 1, 1, 1]).start.tolist() == [0, 2]
    assert cut_text(words, kind=[5, 5, 5, 9, 9, 9]).start.tolist() == [0, 3]
    # Two images: only their last tokens are kept, of one kind but not neighbours.
    assert cut_text(words, position=[0, 9, 20, 21, 22, 23]).start.tolist() == [0, 1, 2]


def test_cut_limits_the_length():
    found = cut_text([" lungs"] * 7 + ["."] + [" no"] * 2, max_length=3)
    assert found.start.tolist() == [0, 3, 6, 8]
    assert found.length.tolist() == [3, 3, 2, 2]


class ArrayStore:
    def __init__(self, x):
        self.x = x
        self.rows_read = 0

    def read(self, start, stop):
        self.rows_read += stop - start
        return self.x[start:stop]


@pytest.fixture(scope="module")
def world():
    """60 studies of random activations and texts, an SAE with a threshold for each feature, and all its features."""
    rng = np.random.default_rng(0)
    n_studies, d_model, n_features = 60, 8, 24
    lengths = rng.integers(20, 90, n_studies)
    study = np.repeat(np.arange(n_studies, dtype=np.int32), lengths)
    n = len(study)
    position = np.arange(n) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    kind = np.where(position < 10, Kind.INDICATION, Kind.FINDINGS).astype(np.int8)
    token_id = rng.choice(len(PIECES), n).astype(np.int32)
    x = rng.normal(size=(n, d_model)).astype(np.float32)
    params = init(jax.random.key(1), d_model, n_features, jax.numpy.zeros(d_model))
    # Feature 0 never fires and feature 1 fires on everything.
    params["b_enc"] = params["b_enc"].at[0].set(-100.0).at[1].set(100.0)
    threshold = np.linspace(0.4, 1.2, n_features, dtype=np.float32)
    sae = Sae(params, threshold, 4, (n_features,))
    found = contexts_lib.cut(study, position, token_id, kind, PIECES, 12)
    held_out = rng.random(n_studies) < 0.3
    f = np.asarray(encode(params, x, threshold))
    peak = np.stack([f[s : s + k].max(0) for s, k in zip(found.start, found.length, strict=True)])
    return dict(
        sae=sae, x=x, study=study, position=position, kind=kind, token_id=token_id,
        contexts=found, held_out=held_out, f=f, peak=peak,
        corpus=Corpus(
            ArrayStore(x), pa.table({"study_id": [f"study {i}" for i in range(n_studies)]}), token_id, PIECES, found,
            held_out,
        ),
    )  # fmt: skip


def build(world, block_tokens, n_sample=40, n_pool=64):
    cfg = index.IndexConfig(n_top=5, n_sample=n_sample, n_pool=n_pool, block_tokens=block_tokens, seed=3)
    study_peak = np.zeros((len(world["held_out"]), 24), np.float32)
    store = ArrayStore(world["x"])
    found = index.build(
        world["sae"],
        store,
        world["contexts"],
        world["held_out"],
        cfg,
        study_peak,
        frozenset({Kind.FINDINGS}),
    )
    assert store.rows_read == len(world["x"])  # one pass
    return found, study_peak


@pytest.mark.parametrize("block_tokens", [64, 512])
def test_index_equals_the_oracle(world, block_tokens):
    found, study_peak = build(world, block_tokens)
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
            priority = index.hashed(active, np.array([feature]), 3)
            sample = active[np.argsort(-priority, kind="stable")][:40]
            kept = got.sample_context[feature][got.sample_context[feature] >= 0]
            assert kept.tolist() == sample.tolist()
            expected = np.histogram(peak[active, feature], np.concatenate([[0], index.EDGES, [np.inf]]))[0]
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


def test_chosen_exemplars_are_uniform_within_true_deciles(world):
    """With a sample as large as the split, deciles are exact and every context of a decile is as likely as another."""
    found, _ = build(world, 512, n_sample=400)
    chosen = selection.choose(found, world["contexts"], {"train": 20, "held_out": 20}, seed=5)
    peak, contexts = world["peak"], world["contexts"]
    for split, name in enumerate(index.SPLITS):
        for feature in range(2, 24):
            here = (chosen.feature == feature) & (chosen.split == split)
            numbers = np.flatnonzero(world["held_out"][contexts.study] == bool(split))
            active = numbers[peak[numbers, feature] > 0]
            ranked = active[np.argsort(peak[active, feature], kind="stable")].tolist()
            by_decile = here & (chosen.kind == selection.DECILE)
            for number, decile in zip(chosen.context[by_decile], chosen.decile[by_decile], strict=True):
                assert ranked.index(number) * 10 // len(ranked) == decile
            assert np.bincount(chosen.decile[by_decile], minlength=10).tolist() == [2] * 10
            silent = chosen.context[here & (chosen.kind == selection.RANDOM)]
            assert len(silent) == len(set(silent.tolist())) > 0
            assert not np.isin(silent, active).any() and np.isin(silent, numbers).all()
        assert found[name].n_contexts[0] == 0
    assert not (chosen.feature == 0).any()
    assert not ((chosen.feature == 1) & (chosen.kind == selection.RANDOM)).any()


def test_sample_is_uniform_over_the_contexts():
    """Over many features that fire everywhere, every context is sampled equally often (chi-square, 5 sigma)."""
    features, numbers = np.arange(4000), np.arange(200)
    priority = index.hashed(numbers[None], features[:, None], 7)
    counts = np.bincount(np.argsort(-priority, axis=1)[:, :20].ravel(), minlength=200)
    variance = 4000 * 0.1 * 0.9
    statistic = ((counts - 400) ** 2 / variance).sum()
    assert abs(statistic - 200) < 5 * np.sqrt(2 * 200)


def test_silent_contexts_are_drawn_as_often_as_they_are_long():
    """Over 4000 features that are silent everywhere but once, the first drawn context is of a length by its tokens."""
    length = np.tile(np.array([1, 4, 15], np.int32), 40)
    n, n_features = len(length), 4000
    found = index.SplitIndex(
        **{name: np.zeros((n_features, 1), int) for name in ("top_context", "top_peak", "sample_context")},
        **{name: np.zeros((n_features, 1)) for name in ("sample_peak", "n_tokens", "position_sum", "histogram")},
        n_contexts=np.ones(n_features, int), pool=np.arange(n), pool_active=np.zeros((n, n_features), bool),
        total_contexts=n, total_tokens=int(length.sum()),
    )  # fmt: skip
    start = np.concatenate([[0], np.cumsum(length)[:-1]])
    contexts = contexts_lib.Contexts(start, length, *(np.zeros(n, np.int32),) * 3)
    chosen = selection.choose({name: found for name in index.SPLITS}, contexts, {"train": 10, "held_out": 10}, 0)
    silent = chosen.take(np.flatnonzero((chosen.kind == selection.RANDOM) & (chosen.split == 0)))
    first = silent.context[np.flatnonzero(np.diff(silent.feature, prepend=-1))]
    share = np.array([(length[first] == size).mean() for size in (1, 4, 15)])
    assert len(first) == n_features
    np.testing.assert_allclose(share, [1 / 20, 4 / 20, 15 / 20], atol=5 * np.sqrt(0.25 / n_features))


@pytest.mark.parametrize("kind", ["a threshold a feature", "the largest of each token"])
def test_every_kind_of_autoencoder_is_indexed_as_it_encodes(world, kind):
    threshold = np.linspace(0.2, 1.5, 24).astype(np.float32) if kind == "a threshold a feature" else -1.0
    sae = Sae(world["sae"].params, threshold, 3, (24,), per_token=kind != "a threshold a feature")
    f = np.asarray(sae.encode(world["x"]))
    found, _ = build(world | {"sae": sae}, 512)
    rows = world["held_out"][world["study"]]
    for name, mask in (("train", ~rows), ("held_out", rows)):
        np.testing.assert_array_equal(found[name].n_tokens.sum(1), (f[mask] > 0).sum(0))
    contexts = world["contexts"]
    number, feature = np.divmod(np.arange(24 * 200), 24)
    values = selection.token_activations(sae, world["corpus"], feature, number)
    for i, (context, own) in enumerate(zip(number, feature, strict=True)):
        part = f[contexts.start[context] :][: contexts.length[context], own]
        np.testing.assert_allclose(values[i, : len(part)], part, rtol=1e-4, atol=1e-5)


def test_written_exemplars_trace_back_to_their_tokens(world, tmp_path):
    found, _ = build(world, 512)
    chosen = selection.choose(found, world["contexts"], {"train": 10, "held_out": 10}, seed=5)
    contexts, f = world["contexts"], world["f"]
    active = chosen.kind != selection.RANDOM
    values = selection.token_activations(world["sae"], world["corpus"], chosen.feature[active], chosen.context[active])
    path = tmp_path / "exemplars.parquet"
    selection.write(path, chosen, values, world["corpus"], 24, 10)
    table = selection.read(path, 0, 24)
    assert table.num_rows == len(chosen)
    assert selection.read(path, 10, 13).column("feature").unique().to_pylist() == [10, 11, 12]
    for row, number in zip(table.to_pylist(), chosen.context, strict=True):
        start, stop = contexts.start[number], contexts.start[number] + contexts.length[number]
        assert row["tokens"] == [PIECES[i] for i in world["token_id"][start:stop]]
        np.testing.assert_allclose(row["activations"], f[start:stop, row["feature"]], rtol=1e-4, atol=1e-5)
        assert row["study_id"] == f"study {world['study'][start]}" and row["position"] == world["position"][start]
        assert row["section"] == ("indication" if world["kind"][start] == Kind.INDICATION else "findings")
        assert row["split"] == ("held_out" if world["held_out"][world["study"][start]] else "train")
        if row["kind"] == "random":
            assert row["max_activation"] == 0 and row["peak"] is None
        else:
            assert row["activations"][row["peak"]] == row["max_activation"] > 0
        assert (row["decile"] is None) == (row["kind"] != "decile")


def test_counters_are_drained_before_they_overflow(world, monkeypatch):
    """With a counter so small that every block must be drained, the counts are the same."""
    whole = build(world, 64)[0]
    monkeypatch.setattr(index, "_MOST", 1)
    drained = build(world, 64)[0]
    for name in index.SPLITS:
        for field in ("n_contexts", "n_tokens", "position_sum", "histogram"):
            np.testing.assert_array_equal(getattr(drained[name], field), getattr(whole[name], field))


def test_blocks_with_more_active_entries_than_room_are_taken_again(world, monkeypatch):
    rooms = []
    room = index._room
    monkeypatch.setattr(index, "_room", lambda n, most: rooms.append(n) or room(n, most))
    whole = build(world | {"sae": dataclasses.replace(world["sae"], k=24)}, 64)[0]
    assert len(rooms) == 1
    retaken = build(world | {"sae": dataclasses.replace(world["sae"], k=1)}, 64)[0]
    assert len(rooms) > 2
    for name in index.SPLITS:
        for field in dataclasses.fields(index.SplitIndex):
            np.testing.assert_array_equal(getattr(retaken[name], field.name), getattr(whole[name], field.name))


def test_section_runs_are_those_of_a_loop(world):
    contexts = world["contexts"]
    begin, end = contexts.section_runs()
    for i in range(len(contexts)):
        same = np.flatnonzero((contexts.study == contexts.study[i]) & (contexts.kind == contexts.kind[i]))
        assert (begin[i], end[i]) == (same[0], same[-1] + 1)


def test_hard_exemplars_are_silent_and_where_they_should_be(world, tmp_path):
    found, _ = build(world, 512)
    contexts, peak = world["contexts"], world["peak"]
    n_decile = {"train": 20, "held_out": 20}
    similar, _ = lens.nearest(lens.activity(index.pooled(found)), 4)
    path = tmp_path / "exemplars.parquet"
    selection.collect(path, world["sae"], world["corpus"], found, similar, n_decile, 5, 10)
    place = {(f"study {s}", p): i for i, (s, p) in enumerate(zip(contexts.study, contexts.position, strict=True))}
    begin, end = contexts.section_runs()
    seen = set()
    rows = selection.read(path, 0, 24).to_pylist()
    for row in rows:
        number, feature = place[row["study_id"], row["position"]], row["feature"]
        if row["kind"] in selection.NON_ACTIVATING_KINDS:
            assert peak[number, feature] == 0 and row["max_activation"] == 0
        if row["kind"] == "nearest":
            assert (peak[number, similar[feature]] > 0).any()
        if row["kind"] == "same study":
            assert (peak[begin[number] : end[number], feature] > 0).any()
        key = (feature, row["split"], row["kind"], row["study_id"], row["position"])
        assert key not in seen
        seen.add(key)
    for split in index.SPLITS:
        counts = []
        for feature in range(2, 24):
            own = [row for row in rows if row["feature"] == feature and row["split"] == split]
            counts.append([sum(row["kind"] == kind for row in own) for kind in ("nearest", "same study")])
            assert max(counts[-1]) <= 5
            shown = selection.shown_non_activating(own, 20)
            assert len({(row["study_id"], row["position"]) for row in shown}) == len(shown) <= 20
            assert sum(row["kind"] not in ("random", "top", "decile") for row in shown) <= 10
        assert np.mean(counts) > 2


def test_memory_of_the_pass_follows_the_formula():
    """The state, and what a step needs beside it, as the compiler plans them."""

    def planned(n_features, n_top=5, n_sample=40, n_pool=64):
        cfg = index.IndexConfig(n_top, n_sample, n_pool, block_tokens=256, seed=0)
        d = 16
        params = {"W_enc": (d, n_features), "b_enc": (n_features,), "W_dec": (n_features, d), "b_dec": (d,)}
        block = {name: 256 for name in ("slot", "kind", "position")} | {
            name: cfg.block_contexts for name in ("context", "study", "pool")
        }
        shaped = jax.ShapeDtypeStruct
        state = jax.eval_shape(lambda: index._empty_state(cfg, n_features))
        size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
        room = [kept + max(kept, 64) for kept in (n_top, n_sample)]
        counters = 4 * (2 + 2 * 2 + index.N_KINDS + len(index.EDGES) + 1)
        assert size == n_features * (8 * room[0] + 12 * room[1] + n_pool + counters)
        plan = (
            index._update.lower(
                state,
                {name: shaped(shape, np.float32) for name, shape in params.items()},
                shaped((), np.float32),
                shaped((256, d), np.float32),
                {name: shaped((n,), np.int32) for name, n in block.items()},
                cfg,
                None,
                256 * n_features // 64,
            )
            .compile()
            .memory_analysis()
        )
        return plan.temp_size_in_bytes / n_features

    # Beside the state a step needs a few times the block's activations, 1 KiB a feature, whatever is kept.
    assert planned(512) == pytest.approx(planned(1024), rel=0.2)
    assert planned(512) < 12 * 1024

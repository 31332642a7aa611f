"""What is written of each exemplar, and where hard exemplars come from."""

import numpy as np

from interp.exemplars import exemplar_table, index, neighbours, selection
from interp.exemplars.token_activations import token_activations
from maira_jax.inputs.tokens import Kind
from tests.helpers.exemplar_world import PIECES, build


def test_written_exemplars_trace_back_to_their_tokens(world, tmp_path):
    found, _ = build(world, 512)
    chosen = selection.select(found, world["contexts"], {"train": 10, "held_out": 10}, seed=5)
    contexts, f = world["contexts"], world["f"]
    active = chosen.kind != selection.RANDOM
    values = token_activations(world["sae"], world["corpus"], chosen.feature[active], chosen.context[active])
    path = tmp_path / "exemplars.parquet"
    exemplar_table.write(path, chosen, values, world["corpus"], 24, 10)
    table = exemplar_table.read(path, 0, 24)
    assert table.num_rows == len(chosen)
    assert exemplar_table.read(path, 10, 13).column("feature").unique().to_pylist() == [10, 11, 12]
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


def test_hard_exemplars_are_not_active_and_where_they_should_be(world, tmp_path):
    found, _ = build(world, 512)
    contexts, peak = world["contexts"], world["peak"]
    n_activating = {"train": 20, "held_out": 20}
    similar, _ = neighbours.coactive(found, 4)
    path = tmp_path / "exemplars.parquet"
    exemplar_table.collect(path, world["sae"], world["corpus"], found, similar, n_activating, 5, 10)
    place = {(f"study {s}", p): i for i, (s, p) in enumerate(zip(contexts.study, contexts.position, strict=True))}
    begin, end = contexts.section_runs()
    seen = set()
    rows = exemplar_table.read(path, 0, 24).to_pylist()
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

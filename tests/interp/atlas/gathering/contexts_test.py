"""The contexts that are shown are exemplars, each sentence once."""

import pyarrow.parquet as pq

from interp.atlas.gathering.contexts import MAX_SHOWN
from interp.exemplars.selection import NON_ACTIVATING_KINDS


def test_contexts_are_those_of_the_exemplars(plain):
    rows = pq.read_table(plain.workdir / "interp" / "exemplars.parquet").to_pylist()
    head, texts = plain.atlas.head, set()
    known = {
        (row["feature"], row["kind"], row["study_id"], tuple(row["tokens"])): row
        for row in rows
        if row["split"] == "train"
    }
    for feature in range(12):
        details = plain.atlas.details(feature)
        contexts = details["contexts"]
        kinds = [head["kinds"][context[0]] for context in contexts]
        assert all(kinds.count(kind) <= limit for kind, limit in MAX_SHOWN.items() if kind != "decile")
        deciles = [context[1] for context in contexts if context[1] >= 0]
        assert len(set(deciles)) == len(deciles) and (deciles == [] or max(deciles) <= 9)
        for kind, (_, _, section, study, largest, tokens, heat, *image) in zip(kinds, contexts, strict=True):
            assert bool(image) == (head["sections"][section] == "image")
            if image:
                continue
            words = tuple(details["texts"][token] for token in tokens)
            row = known[feature, kind, study, words]
            assert head["sections"][section] == row["section"] and largest == float(f"{row['max_activation']:.4g}")
            assert (heat == []) == (kind in NON_ACTIVATING_KINDS)
            assert (feature, kind, words) not in texts
            texts.add((feature, kind, words))
            if heat:
                percents = dict(zip(heat[::2], heat[1::2], strict=True))
                assert percents[row["peak"]] == max(percents.values())
                assert set(percents) == {i for i, value in enumerate(row["activations"]) if value}
    assert len(texts) > 100

"""Features are found by the words of their contexts."""

from interp.atlas import chunks
from interp.atlas.gathering import context_words
from interp.atlas.gathering.context_words import ContextWords


def test_words_lead_to_features_over_several_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr(context_words, "_CHUNK", 3)
    words = ContextWords()
    words.add(2, [[" Left", " eff", "usion", "."], [" no", " effusion"]])
    words.add(7, [[" Effusion"], [" left"]])
    firsts = words.write(chunks.ChunkWriter(tmp_path))
    found = {}
    for n, first in enumerate(firsts):
        part = chunks.read_chunk(tmp_path / "data" / f"words-{n}.js")
        assert min(part) == first
        found |= part
    assert firsts == ["effusion", "no"]
    assert found == {"effusion": [2, 5], "left": [2, 5], "no": [2]}


def test_every_activating_context_is_in_the_index(plain):
    index = {}
    for n in range(len(plain.atlas.head["words"])):
        index |= plain.atlas.chunk(f"words-{n}")
    details = plain.atlas.details(5)
    active = [c for c in details["contexts"] if plain.atlas.head["kinds"][c[0]] in ("top", "decile") and c[5]]
    assert active and 5 in [sum(index["pacemaker"][: n + 1]) for n in range(len(index["pacemaker"]))]

"""Chunks hold any text, and nothing of it as a script."""

from interp.atlas.chunks import ChunkWriter, read_chunk
from tests.helpers.atlas_page import ATTACK


def test_a_chunk_is_read_as_it_was_written(tmp_path):
    value = {"texts": [ATTACK, 'é"\\'], "numbers": [1, 0.25, None]}
    ChunkWriter(tmp_path).write("feature-3", value)
    path = tmp_path / "data" / "feature-3.js"
    assert read_chunk(path) == value
    script = path.read_text()
    assert script.startswith('atlasChunk("feature-3","') and script.endswith('");\n') and script.count('"') == 4

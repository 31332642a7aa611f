"""The atlas's data: compressed chunks that the page loads when it needs them, from a disk as from a server.

A page that is opened from a disk may not read files, but it may run scripts of its folder. A chunk is therefore a
script that hands over its content: JSON, deflated, in base64.
"""

import base64
import json
import zlib
from pathlib import Path
from typing import Any

FOLDER = "data"
_LEVEL = 6  # of zlib


class ChunkWriter:
    """Writes chunks into the folder `data` of an atlas.

    Args:
      atlas: the atlas's folder.
    """

    def __init__(self, atlas: Path):
        self._folder = atlas / FOLDER
        self._folder.mkdir(exist_ok=True)

    def write(self, name: str, value: Any) -> None:
        """Writes a JSON-like value as the chunk of this name, which is letters, digits and hyphens."""
        text = json.dumps(value, allow_nan=False, separators=(",", ":"))  # ASCII only
        compressor = zlib.compressobj(_LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS)
        packed = compressor.compress(text.encode()) + compressor.flush()
        script = f'atlasChunk("{name}","{base64.b64encode(packed).decode()}");\n'
        (self._folder / f"{name}.js").write_text(script, encoding="ascii")


def read_chunk(path: Path) -> Any:
    """The content of a chunk, as the page reads it."""
    packed = path.read_text(encoding="ascii").split('"')[3]
    return json.loads(zlib.decompress(base64.b64decode(packed), -zlib.MAX_WBITS))

"""Reads an autoencoder and writes it in every format, in a process that has no torch: FIRST SECOND."""

import sys
from pathlib import Path

sys.modules["torch"] = None  # type: ignore[assignment]

from sae import formats  # noqa: E402

if __name__ == "__main__":
    first, second = map(Path, sys.argv[1:])
    for name, writer in formats.writers().items():
        writer.save(second / name, formats.load(first), True)

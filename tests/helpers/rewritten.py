"""Files of a finished stage that a test has written anew, as if the stage had written them so."""

from pathlib import Path

from maira_jax.run import files
from maira_jax.run.stages import checksums
from maira_jax.run.stages.stage import MANIFEST


def accept(folder: Path) -> None:
    """Has the manifest in `folder` hold the checksums of what is there now."""
    manifest = files.read_object(folder / MANIFEST)
    found = checksums.of_folder(folder, (MANIFEST,))
    files.write_json(folder / MANIFEST, checksums.sign(manifest | {"files": found}))

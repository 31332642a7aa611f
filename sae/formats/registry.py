"""The registry of formats: how the files of each are recognised, read and, where this toolkit exports them, written.

A new format is one file that reads it (and writes it) and ends with a registration:

    FORMATS.register("my_program")(SaeFormat("My program", files=("weights.bin",), load=load))

`sae/formats/__init__.py` imports the files of the built-in formats; a configuration file may import one of your own.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path

from maira_jax.errors import UserError
from maira_jax.run.registry import Registry
from sae.autoencoder import Sae
from sae.saved import load_sae


@dataclasses.dataclass(frozen=True)
class FormatWriter:
    """How a format is written.

    Attributes:
      save: `save(directory, sae, fold_normalization)` writes the files of an autoencoder into a folder. It raises
        UserError where the format cannot express this autoencoder.
      library: the `library_name` in the header of the model card, by which the Hugging Face Hub knows the program.
      usage: Python code for the model card that loads the folder FOLDER and computes features.
    """

    save: Callable[[Path, Sae, bool], None]
    library: str
    usage: str


@dataclasses.dataclass(frozen=True)
class SaeFormat:
    """A format in which autoencoders are stored.

    Attributes:
      title: name of the program that the files belong to, for messages.
      files: names of the file to read; a folder that holds one of them is recognised by it.
      load: reads such a file. It raises UserError where the file is damaged or holds another kind of autoencoder.
      companion: name of a file that must lie in the same folder; such a format precedes one without a companion, so
        that formats may share the name of the file to read.
      endings: endings by which a file of any other name is recognised, e.g. ".pt".
      writer: how the format is written; None where it is only read.
    """

    title: str
    files: tuple[str, ...]
    load: Callable[[Path], Sae]
    companion: str = ""
    endings: tuple[str, ...] = ()
    writer: FormatWriter | None = None


FORMATS: Registry[SaeFormat] = Registry("export.to")


def all_formats() -> list[SaeFormat]:
    """Every registered format."""
    return [FORMATS.get(name) for name in FORMATS.names()]


def writers() -> dict[str, FormatWriter]:
    """The writers of all formats that can be written, by the format's name."""
    found = {name: FORMATS.get(name).writer for name in FORMATS.names()}
    return {name: writer for name, writer in found.items() if writer is not None}


def load(path: Path) -> Sae:
    """Reads an autoencoder: a `sae` stage's folder, or a file or folder of any registered format.

    Raises:
      UserError: nothing there can be read as one of these.
    """
    path = Path(path)
    if path.is_dir():
        names = [name for known in all_formats() for name in known.files]
        found = next((path / name for name in names if (path / name).is_file()), None)
        return load_sae(path) if found is None else load(found)
    if not path.is_file():
        raise UserError(f"{path} does not exist: check the path")
    recognised = _recognised(path)
    if recognised is None:
        titles = ", ".join(known.title for known in all_formats())
        raise UserError(f"{path} is not of a known format: give a file or folder of one of {titles}")
    return recognised.load(path)


def _recognised(path: Path) -> SaeFormat | None:
    """The format of a file: by its name together with a companion, by its name alone, or by its ending."""
    by_name = [known for known in all_formats() if path.name in known.files]
    with_companion = [known for known in by_name if known.companion and path.with_name(known.companion).is_file()]
    alone = [known for known in by_name if not known.companion]
    by_ending = [known for known in all_formats() if path.suffix in known.endings]
    return next(iter(with_companion + alone + by_ending), None)

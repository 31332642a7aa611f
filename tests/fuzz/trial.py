"""One reader on inputs that are damaged one after the other, each from the sound one."""

import random
import shutil
from pathlib import Path

from maira_jax.errors import UserError
from tests.fuzz.fuzzed_reader import FuzzedReader
from tests.fuzz.mutations import mutated


class Trials:
    """A reader with a folder of its own.

    Args:
      reader: what is tried.
      folder: an empty folder.

    Raises:
      UserError: the reader refuses its sound input.
    """

    def __init__(self, reader: FuzzedReader, folder: Path):
        self._reader, self._sound, self._folder = reader, folder / "sound", folder / "damaged"
        self._sound.mkdir()
        reader.write(self._sound)
        self._names = reader.damaged_files(self._sound)
        self._renew()
        reader.read(self._folder)
        self._renew()

    def _renew(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)
        shutil.copytree(self._sound, self._folder)

    def run(self, rng: random.Random) -> str | None:
        """Reads one damaged input; returns the refusal, None where it was accepted.

        Raises:
          AssertionError: the refusal says nothing.
          Exception: what the reader raises other than a `UserError`.
        """
        name = rng.choice(self._names)
        path, sound = self._folder / name, (self._sound / name).read_bytes()
        path.write_bytes(mutated(path.name, sound, rng))
        try:
            self._reader.read(self._folder)
        except UserError as error:
            assert str(error).strip(), "a refusal without a word"
            return str(error)
        finally:
            path.write_bytes(sound)
            if self._reader.writes:
                self._renew()
        return None

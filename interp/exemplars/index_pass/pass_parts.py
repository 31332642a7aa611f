"""What a pass has found in parts of the store's contexts, each a file.

Several processes save their parts, which one of them joins; and of a pass that was interrupted, the parts that it had
saved need not be read again, by however many processes.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from maira_jax.errors import UserError
from maira_jax.run import files

_IDENTITY, _STOP = "identity", "stop"


@dataclasses.dataclass(frozen=True)
class PassParts:
    """The parts of a pass.

    Attributes:
      folder: of the files.
      identity: a digest of all that decides the result.
    """

    folder: Path
    identity: str

    def save(self, contexts: range, found: Mapping[str, np.ndarray]) -> None:
        """Writes what was found in consecutive contexts, whole or not at all; replaces a file of the same start."""
        with files.atomic_path(self._path(contexts.start)) as temporary, temporary.open("wb") as file:
            arrays: dict[str, Any] = {_IDENTITY: np.array(self.identity), _STOP: np.array(contexts.stop), **found}
            np.savez(file, **arrays)

    def load(self, start: int) -> dict[str, np.ndarray]:
        """The arrays that `save` wrote of the contexts from `start` on.

        Raises:
          UserError: the part is of another pass.
        """
        with np.load(self._path(start)) as file:
            self._check(file)
            return {name: file[name] for name in file.files if name not in (_IDENTITY, _STOP)}

    def saved(self) -> list[range]:
        """The contexts of each part that is there, in order.

        Raises:
          UserError: a part is of another pass.
        """
        found = []
        for path in sorted(self.folder.glob("*.npz")):
            with np.load(path) as file:
                self._check(file)
                found.append(range(int(path.stem), int(file[_STOP])))
        return found

    def _check(self, part: Mapping[str, np.ndarray]) -> None:
        if str(part[_IDENTITY]) != self.identity:
            raise UserError(
                f"{self.folder} holds a pass over other contexts or another autoencoder: delete {self.folder.parent}"
            )

    def _path(self, start: int) -> Path:
        return self.folder / f"{start:012d}.npz"

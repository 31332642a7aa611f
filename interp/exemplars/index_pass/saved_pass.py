"""A pass that was interrupted, as a file: what it had found, and of how many contexts."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from maira_jax.errors import UserError
from maira_jax.run import files

_IDENTITY, _N_CONTEXTS = "identity", "n_contexts"


def save(path: Path, identity: str, n_contexts: int, found: Mapping[str, np.ndarray]) -> None:
    """Writes what was found in the store's first contexts, whole or not at all; replaces an earlier file.

    Args:
      path: the .npz file.
      identity: a digest of all that decides the result.
      n_contexts: number of contexts that the pass has finished.
      found: arrays by name.
    """
    with files.atomic_path(path) as temporary, temporary.open("wb") as file:
        arrays: dict[str, Any] = {_IDENTITY: np.array(identity), _N_CONTEXTS: np.array(n_contexts), **found}
        np.savez(file, **arrays)


def load(path: Path, identity: str) -> tuple[int, dict[str, np.ndarray]] | None:
    """The number of finished contexts and the arrays that `save` wrote; None if there is no file.

    Raises:
      UserError: the file is of another pass.
    """
    if not path.is_file():
        return None
    with np.load(path) as file:
        arrays = dict(file)
    if str(arrays.pop(_IDENTITY)) != identity:
        raise UserError(f"{path} is of a pass over other contexts or another autoencoder: delete {path.parent}")
    return int(arrays.pop(_N_CONTEXTS)), arrays

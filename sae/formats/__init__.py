"""Autoencoders in files that other programs read and write.

Reading gives an `Sae` in raw units, whatever the file: features are computed from activations as the model has them.
"""

from collections.abc import Callable
from pathlib import Path

from maira_jax.errors import UserError
from sae.autoencoder import Sae
from sae.formats import dictionary_learning, others, saelens, safetensors_file
from sae.training import checkpoints

# By name, in a folder; the first that is there is read.
_FILES: dict[str, Callable[[Path], Sae]] = {
    dictionary_learning.FILE: dictionary_learning.load,
    saelens.FILE: saelens.load,
    others.GEMMA_SCOPE: others.load_gemma_scope,
    others.GEMMA_SCOPE_2: others.load_gemma_scope,
}
_ENDINGS: dict[str, Callable[[Path], Sae]] = {
    ".pt": dictionary_learning.load,
    ".npz": others.load_gemma_scope,
    ".safetensors": safetensors_file.load,
}


def load(path: Path) -> Sae:
    """Reads an autoencoder: a `sae` stage's folder, or a file or folder of any known format.

    Raises:
      UserError: nothing there can be read as one of these.
    """
    path = Path(path)
    if path.is_dir():
        found = next((name for name in (*_FILES, safetensors_file.FILE) if (path / name).is_file()), None)
        return checkpoints.load_sae(path) if found is None else load(path / found)
    if not path.is_file():
        raise UserError(f"{path} does not exist: check the path")
    if path.name == safetensors_file.FILE and path.with_name(others.SPARSIFY_CONFIG).is_file():
        return others.load_sparsify(path)
    if path.name not in _FILES and path.suffix not in _ENDINGS:
        raise UserError(
            f"{path} is not a known format: give a file or folder of dictionary_learning, SAELens, sparsify, "
            "Gemma Scope or launch.export"
        )
    return _FILES.get(path.name, _ENDINGS.get(path.suffix, safetensors_file.load))(path)

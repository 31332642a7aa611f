"""Gemma Scope's `params.npz` and Gemma Scope 2's `params.safetensors`, which are read and not written."""

import zipfile
from pathlib import Path

import numpy as np

from maira_jax.errors import UserError
from sae.autoencoder import Sae
from sae.formats import raw_units
from sae.formats.registry import FORMATS, SaeFormat

# Float32 weights of eight bits each deflate to a fourth.
_MAX_TIMES_LARGER = 8


def load(path: Path) -> Sae:
    """Reads either file: an autoencoder with one threshold per feature.

    The encoder of Gemma Scope does not subtract `b_dec` from its input; here that is folded into `b_enc`.

    Raises:
      UserError: the file is damaged, says that it holds far more than its bytes, or holds a transcoder.
    """
    path = Path(path)
    found = _read_npz(path) if path.suffix == ".npz" else raw_units.read_safetensors(path)[0]
    arrays = {name.replace("w_", "W_"): value for name, value in found.items()}
    names = {*raw_units.ARRAYS, "threshold"}
    raw_units.refuse_missing(path, arrays, names)
    if set(arrays) - names or np.shape(arrays["W_dec"]) != np.shape(arrays["W_enc"])[::-1]:
        raise UserError(f"{path} is a transcoder or was finetuned: give a plain autoencoder of Gemma Scope")
    arrays |= raw_units.four_arrays(path, arrays)
    if "embedding" in path.parts:
        # These were trained on embeddings multiplied by the root of their width.
        root = np.float32(np.sqrt(arrays["b_dec"].size))
        arrays |= {"W_enc": arrays["W_enc"] / root, "W_dec": arrays["W_dec"] * root}
    return raw_units.imported(
        path,
        arrays,
        threshold=arrays["threshold"],
        k=0,
        takes_raw=True,
        meta={"gemma_scope": str(path.parent)},
    )


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    try:
        with zipfile.ZipFile(path) as archive:
            unfolded, stored = sum(member.file_size for member in archive.infolist()), path.stat().st_size
        if unfolded > _MAX_TIMES_LARGER * stored:
            raise UserError(
                f"{path} is said to hold {unfolded:,} bytes, which its {stored:,} bytes cannot: copy the file again"
            )
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except UserError:
        raise
    except Exception as error:  # numpy raises zip, value and end-of-file errors for damaged files
        raise raw_units.damaged(path, error) from error


FORMATS.register("gemma_scope")(
    SaeFormat("Gemma Scope", files=("params.npz", "params.safetensors"), endings=(".npz",), load=load)
)

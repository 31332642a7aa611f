"""The finished autoencoder in a run directory: `weights.safetensors`, and a JSON file of everything else."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors.numpy import load_file, save_file

from maira_jax.errors import UserError, first_line
from maira_jax.run import files, processes
from sae.autoencoder import Sae

_WEIGHTS = "weights.safetensors"
_HEADER = "sae.json"
_KINDS = {"k": int, "group_sizes": list, "meta": dict, "per_token": bool}


def save_sae(directory: Path, sae: Sae) -> None:
    """Has the first process write a finished autoencoder, which every one has, into the stage's folder."""
    if not processes.is_first():
        return
    weights = Path(directory) / _WEIGHTS
    arrays = {name: np.asarray(value, order="C") for name, value in sae.params.items()}
    header: dict[str, Any] = {field.name: getattr(sae, field.name) for field in dataclasses.fields(sae)}
    del header["params"]
    if isinstance(sae.threshold, np.ndarray):
        arrays["threshold"] = np.asarray(header.pop("threshold"))
    with files.atomic_path(weights) as path:
        save_file(arrays, path)
    header |= {"d_model": sae.d_model, "n_features": sae.n_features, "weights_sha256": files.sha256(weights)}
    files.write_json(Path(directory) / _HEADER, header)


def load_sae(directory: Path) -> Sae:
    """Reads the autoencoder that `save_sae` wrote, e.g. `load_sae(workdir / "sae")`.

    Raises:
      UserError: there is none, or it is damaged.
    """
    directory = Path(directory)
    header = files.read_object(directory / _HEADER)
    try:
        d, f, digest = (header.pop(name) for name in ("d_model", "n_features", "weights_sha256"))
        if files.sha256(directory / _WEIGHTS) != digest:
            raise ValueError(f"{_WEIGHTS} is another file than {_HEADER} was written for")
        arrays = load_file(directory / _WEIGHTS)
        if "threshold" in header:
            header["threshold"] = float(header["threshold"])
        else:
            header["threshold"] = arrays.pop("threshold").reshape(f)
        if not all(isinstance(header[name], kind) for name, kind in _KINDS.items()):
            raise ValueError(f"{_HEADER} holds values of other kinds")
        shapes = {"W_enc": (d, f), "b_enc": (f,), "W_dec": (f, d), "b_dec": (d,)}
        if {name: array.shape for name, array in arrays.items()} != shapes:
            raise ValueError(f"{_WEIGHTS} has other shapes than {_HEADER} says")
        params = jax.device_put(arrays, jax.local_devices()[0])
        return Sae(params=params, **header | {"group_sizes": tuple(header["group_sizes"])})
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{directory} holds no readable autoencoder ({first_line(error)}): train again") from error

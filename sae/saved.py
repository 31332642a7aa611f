"""The finished autoencoder in a run directory: an orbax checkpoint of its arrays and a JSON file of everything else."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from maira_jax.errors import UserError, first_line
from maira_jax.run import files, processes
from sae.autoencoder import Sae

_WEIGHTS = "weights"
_HEADER = "sae.json"


def save_sae(directory: Path, sae: Sae) -> None:
    """Writes a finished autoencoder, the same one on all processes of the run, into the stage's folder."""
    path = (Path(directory) / _WEIGHTS).absolute()
    # Of arrays in host memory, which every process has, orbax lets one process write the whole.
    ocp.save(path, {name: np.asarray(value) for name, value in sae.params.items()}, overwrite=True)
    if not processes.is_first():
        return
    header = {name: value for name, value in dataclasses.asdict(sae).items() if name != "params"}
    files.write_json(Path(directory) / _HEADER, header | {"d_model": sae.d_model, "n_features": sae.n_features})


def load_sae(directory: Path) -> Sae:
    """Reads the autoencoder that `save_sae` wrote, e.g. `load_sae(workdir / "sae")`.

    Raises:
      UserError: there is none, or it is damaged.
    """
    directory = Path(directory)
    header = files.read_object(directory / _HEADER)
    try:
        d, f = header.pop("d_model"), header.pop("n_features")
        shapes = {"W_enc": (d, f), "b_enc": (f,), "W_dec": (f, d), "b_dec": (d,)}
        place = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        abstract = {name: jax.ShapeDtypeStruct(s, np.float32, sharding=place) for name, s in shapes.items()}
        with processes.own_checkpoints():
            params = ocp.load((directory / _WEIGHTS).absolute(), abstract)
        return Sae(params=params, **header | {"group_sizes": tuple(header["group_sizes"])})
    except Exception as error:  # orbax raises many classes for a damaged folder
        raise UserError(f"{directory} holds no readable autoencoder ({first_line(error)}): train again") from error

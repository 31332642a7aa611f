"""This toolkit's own format: `sae.safetensors`, the four arrays and a JSON header under the metadata key `sae`.

An autoencoder whose normalisation is folded (`norm_folded`) takes raw activations; another one takes activations
divided by `norm_factor`.
"""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from maira_jax.errors import UserError
from maira_jax.run import files
from sae.autoencoder import Sae
from sae.formats import raw_units
from sae.formats.registry import FORMATS, FormatWriter, SaeFormat

_FILE = "sae.safetensors"
_HEADER, _FORMAT = "sae", "maira-jax-sae"
_FIELDS = ("k", "per_token", "group_sizes", "norm_factor", "norm_folded", "meta")


def save(directory: Path, sae: Sae, fold_normalization: bool = True) -> None:
    """Writes `sae.safetensors` into `directory`; `fold_normalization`: for raw activations."""
    params, threshold, factor = raw_units.exported(sae, fold_normalization)
    header = {
        "format": _FORMAT,
        "k": sae.k,
        "per_token": sae.per_token,
        "group_sizes": list(sae.group_sizes),
        "norm_factor": factor,
        "norm_folded": fold_normalization,
        "meta": dict(sae.meta),
    }
    if isinstance(threshold, np.ndarray):
        params["threshold"] = threshold
    else:
        header["threshold"] = threshold
    with files.atomic_path(Path(directory) / _FILE) as temporary:
        save_file(params, temporary, metadata={_HEADER: json.dumps(header, allow_nan=False)})


def load(path: Path) -> Sae:
    """Reads what `save` wrote.

    Raises:
      UserError: the file is truncated, or is another kind of safetensors file.
    """
    arrays, metadata = raw_units.read_safetensors(path)
    try:
        header = files.parse_json(metadata.get(_HEADER, "null"))
    except ValueError as error:
        raise UserError(f"{path} has a damaged header: copy the file again") from error
    if not isinstance(header, dict) or header.get("format") != _FORMAT:
        raise UserError(f"{path} has no autoencoder header: give a file that launch.export wrote")
    raw_units.refuse_missing(path, header.keys() | arrays.keys(), (*_FIELDS, "threshold"))
    return raw_units.imported(
        path,
        arrays,
        threshold=arrays["threshold"] if "threshold" in arrays else header["threshold"],
        k=header["k"],
        group_sizes=header["group_sizes"],
        per_token=bool(header["per_token"]),
        factor=header["norm_factor"],
        folded=bool(header["norm_folded"]),
        meta=raw_units.part(path, header, "meta"),
    )


FORMATS.register("safetensors")(
    SaeFormat(
        "maira-jax",
        files=(_FILE,),
        endings=(".safetensors",),
        load=load,
        writer=FormatWriter(
            save,
            library="maira-jax",
            usage="from sae import formats\n\nsae = formats.load(FOLDER)\nfeatures = sae.encode(activations)",
        ),
    )
)

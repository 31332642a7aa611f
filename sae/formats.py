"""Autoencoders in files that other programs read and write.

dictionary_learning: a folder with `ae.pt` (a torch state dict: W_enc, b_enc, W_dec, b_dec, k, threshold, group_sizes)
and `config.json` (`trainer` and `buffer`, which its own and SAELens' loaders ask for). dictionary_learning forgets the
factor that it divides activations by; it is written here as the extra fields `norm_factor` and `norm_folded`.

safetensors: one file with the four arrays and a JSON header under the metadata key `sae`.

In both, an autoencoder whose normalisation is folded takes raw activations; one that is not takes activations divided
by `norm_factor`. Reading gives an `Sae` in raw units either way.
"""

import io
import json
import re
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from maira_jax.errors import UserError
from maira_jax.run import files
from sae import autoencoder, checkpoint
from sae.autoencoder import Sae

_ARRAYS = ("W_enc", "b_enc", "W_dec", "b_dec")
_AE, _CONFIG, _SAFETENSORS = "ae.pt", "config.json", "sae.safetensors"
_HEADER = "sae"
_TRAINER_CLASS, _DICT_CLASS = "MatryoshkaBatchTopKTrainer", "MatryoshkaBatchTopKSAE"


def load(path: Path) -> Sae:
    """Reads an autoencoder: a `sae` stage's folder, a dictionary_learning folder or `ae.pt`, or a safetensors file.

    Raises:
      UserError: nothing there can be read as one of these.
    """
    path = Path(path)
    if path.is_dir():
        for name, read in ((_AE, load_dictionary_learning), (_SAFETENSORS, load_safetensors)):
            if (path / name).is_file():
                return read(path / name)
        return checkpoint.load_sae(path)
    if not path.is_file():
        raise UserError(f"{path} does not exist: check the path")
    if path.suffix == ".pt":
        return load_dictionary_learning(path)
    if path.suffix == ".safetensors":
        return load_safetensors(path)
    raise UserError(f"{path} is not a known format: give ae.pt, a .safetensors file or a folder with either")


def save_safetensors(directory: Path, sae: Sae, fold_normalization: bool = True) -> Path:
    """Writes `sae.safetensors` into `directory` and returns its path."""
    params, threshold, factor = _export_units(sae, fold_normalization)
    header = {
        "format": "maira-jax-sae",
        "threshold": threshold,
        "k": sae.k,
        "group_sizes": list(sae.group_sizes),
        "norm_factor": factor,
        "norm_folded": fold_normalization,
        "meta": dict(sae.meta),
    }
    path = Path(directory) / _SAFETENSORS
    with files.atomic_path(path) as temporary:
        save_file(params, temporary, metadata={_HEADER: json.dumps(header, allow_nan=False)})
    return path


def load_safetensors(path: Path) -> Sae:
    """Reads what `save_safetensors` wrote.

    Raises:
      UserError: the file is truncated, or is another kind of safetensors file.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            header = json.loads((file.metadata() or {}).get(_HEADER, "null"))
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError, json.JSONDecodeError) as error:
        raise UserError(f"{path} is truncated or damaged ({_first_line(error)}): copy the file again") from error
    if not isinstance(header, dict) or header.get("format") != "maira-jax-sae":
        raise UserError(f"{path} has no autoencoder header: give a file that launch.export wrote")
    return _import_units(path, arrays, header, header["meta"])


def save_dictionary_learning(directory: Path, sae: Sae, fold_normalization: bool = True) -> Path:
    """Writes `ae.pt` and `config.json` into `directory`, as dictionary_learning's trainer does; returns `directory`.

    Raises:
      UserError: torch is not installed.
    """
    torch = _torch("writing")
    params, threshold, factor = _export_units(sae, fold_normalization)
    # dictionary_learning keeps W_enc as the transposed view of a [features, d_model] tensor, and so its file does.
    transposed = torch.from_numpy(np.ascontiguousarray(params["W_enc"].T))
    state = {
        "W_enc": transposed.T,
        "b_enc": torch.from_numpy(params["b_enc"]),
        "W_dec": torch.from_numpy(params["W_dec"]),
        "b_dec": torch.from_numpy(params["b_dec"]),
        "k": torch.tensor(sae.k, dtype=torch.int32),
        "threshold": torch.tensor(threshold, dtype=torch.float32),
        "group_sizes": torch.tensor(sae.group_sizes, dtype=torch.int64),
    }
    # Through memory: in a file, torch.save would write the temporary file's name into the archive.
    content = io.BytesIO()
    torch.save(state, content)
    directory = Path(directory)
    with files.atomic_path(directory / _AE) as temporary:
        temporary.write_bytes(content.getvalue())
    trainer = _trainer_config(sae) | {"norm_factor": factor, "norm_folded": fold_normalization}
    files.write_json(directory / _CONFIG, {"trainer": trainer, "buffer": _buffer_config(sae)})
    return directory


def load_dictionary_learning(path: Path) -> Sae:
    """Reads `ae.pt` (tensors only: no object in it is unpickled) and, where it is there, the `config.json` beside it.

    Raises:
      UserError: torch is not installed, the file is damaged or holds another class of autoencoder.
    """
    torch = _torch("reading")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises pickle, zip, runtime and end-of-file errors for damaged files
        raise UserError(
            f"{path} cannot be read as tensors ({_first_line(error)}): copy the file again, or export it anew"
        ) from error
    wanted = {*_ARRAYS, "k", "threshold", "group_sizes"}
    if not isinstance(state, Mapping) or not wanted <= set(state):
        raise UserError(f"{path} lacks {', '.join(sorted(wanted - set(state)))}: give a {_DICT_CLASS} file")
    config_path = Path(path).with_name(_CONFIG)
    trainer = files.read_json(config_path).get("trainer", {}) if config_path.is_file() else {}
    header = {
        "threshold": float(state["threshold"]),
        "k": int(state["k"]),
        "group_sizes": state["group_sizes"].tolist(),
        "norm_factor": trainer.get("norm_factor", 1.0),
        # Its own trainer saves folded files, too.
        "norm_folded": trainer.get("norm_folded", True),
    }
    arrays = {name: state[name].to(torch.float32).numpy() for name in _ARRAYS}
    return _import_units(path, arrays, header, {"dictionary_learning": trainer})


def _torch(doing: str) -> ModuleType:
    try:
        import torch
    except ImportError as error:
        raise UserError(
            f"{doing} ae.pt needs torch, which is not installed: pip install 'maira-jax[export]'"
        ) from error
    return torch


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _export_units(sae: Sae, fold_normalization: bool) -> tuple[dict[str, np.ndarray], float, float]:
    """Parameters and threshold for raw or for normalised activations, and the factor between the two."""
    factor = float(sae.meta.get("normalization", 1.0))
    params, threshold = autoencoder.fold(sae.params, sae.threshold, 1.0 if fold_normalization else 1.0 / factor)
    return {name: np.array(params[name], order="C") for name in _ARRAYS}, threshold, factor


def _import_units(path: Path, arrays: Mapping[str, np.ndarray], header: Mapping[str, Any], meta: Any) -> Sae:
    try:
        d, f = arrays["W_enc"].shape
        shapes = {"W_enc": (d, f), "b_enc": (f,), "W_dec": (f, d), "b_dec": (d,)}
        sizes = tuple(int(size) for size in header["group_sizes"])
        factor, folded = float(header["norm_factor"]), bool(header["norm_folded"])
        k, threshold = int(header["k"]), float(header["threshold"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} lacks or garbles {error}: copy the file again, or export it anew") from error
    for name, shape in shapes.items():
        if name not in arrays or arrays[name].shape != shape:
            raise UserError(f"{path} has no {name} of shape {shape}: give a whole autoencoder")
        if not np.isfinite(arrays[name]).all():
            raise UserError(f"{path} holds values in {name} that are not finite: copy the file again")
    if sum(sizes) != f:
        raise UserError(f"{path} has groups of {sizes} features, but {f} features: copy the file again")
    params, threshold = autoencoder.fold(arrays, threshold, 1.0 if folded else factor)
    meta = dict(meta) | {"normalization": factor}
    return Sae({name: jnp.asarray(params[name]) for name in _ARRAYS}, threshold, k, sizes, meta)


def _layer(site: str) -> int:
    """The decoder block of a site, as dictionary_learning's `layer`; -1 for the embedding."""
    found = re.search(r"\.(\d+)\.", site)
    return int(found[1]) if found else -1


def _trainer_config(sae: Sae) -> dict[str, Any]:
    """What dictionary_learning's trainer writes about itself; None for what an imported autoencoder does not tell."""
    source, train, model = (sae.meta.get(key, {}) for key in ("source", "train", "sae"))
    imported = sae.meta.get("dictionary_learning", {})
    site = source.get("site", "")
    known = {
        "trainer_class": _TRAINER_CLASS,
        "dict_class": _DICT_CLASS,
        "lr": train.get("lr"),
        "steps": train.get("steps"),
        "auxk_alpha": train.get("auxk_alpha"),
        "warmup_steps": train.get("warmup_steps"),
        "decay_start": train.get("decay_start"),
        "threshold_beta": train.get("threshold_beta"),
        "threshold_start_step": train.get("threshold_start"),
        "top_k_aux": sae.d_model // 2,
        "seed": train.get("seed"),
        "activation_dim": sae.d_model,
        "dict_size": sae.n_features,
        "group_fractions": [size / sae.n_features for size in sae.group_sizes],
        "group_weights": model.get("group_weights"),
        "group_sizes": list(sae.group_sizes),
        "k": sae.k,
        "device": "cpu",
        "layer": _layer(site),
        "lm_name": source.get("checkpoint", "unknown"),
        "wandb_name": "MatryoshkaBatchTopKSAE",
        "submodule_name": site,
    }
    return {name: imported.get(name, value) for name, value in known.items()}


def _buffer_config(sae: Sae) -> dict[str, Any]:
    """Where the activations came from, in the words of dictionary_learning's buffer."""
    batch = sae.meta.get("train", {}).get("batch_size")
    return {
        "d_submodule": sae.d_model,
        "io": "out",
        "n_ctxs": None,
        "ctx_len": None,
        "refresh_batch_size": None,
        "out_batch_size": batch,
        "device": "cpu",
    }

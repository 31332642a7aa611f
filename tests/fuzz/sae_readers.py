"""Readers of autoencoders: every format of other programs, and the finished one of a run."""

from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from maira_jax.checkpoint import torch_file
from maira_jax.run import files
from sae import formats
from sae.autoencoder import Sae
from sae.import_sae import digest, stated_site
from sae.saved import load_sae, save_sae
from tests.fuzz.fuzzed_reader import FuzzedReader
from tests.helpers.formats import META
from tests.helpers.sae import activations, random_sae

_D, _GROUPS = 6, (8, 4)
_F = sum(_GROUPS)


def _sae(**fields: object) -> Sae:
    given = {"group_sizes": _GROUPS, "k": 3, "threshold": 0.25, "meta": META} | fields
    return random_sae(activations(40, _D), **given)


def _read(folder: Path) -> object:
    """As `import_sae` reads a folder, features of one token included."""
    sae = formats.load(folder)
    return digest(sae), stated_site(sae.meta), sae.encode(np.zeros((1, sae.d_model), np.float32))


def _exported(name: str, *patterns: str, **fields: object) -> FuzzedReader:
    save = formats.writers()[name].save
    return FuzzedReader(lambda folder: save(folder, _sae(**fields), True), _read, patterns)


def _write_sparsify(folder: Path) -> None:
    params = {name: np.asarray(value) for name, value in _sae().params.items()}
    arrays = {"encoder.weight": params["W_enc"].T.copy(), "encoder.bias": params["b_enc"]}
    save_file(arrays | {name: params[name] for name in ("W_dec", "b_dec")}, folder / "sae.safetensors")
    config = {"activation": "topk", "expansion_factor": 2, "k": 3, "transcode": False, "d_in": _D}
    files.write_json(folder / "cfg.json", config)


def _gemma(folder: Path, as_npz: bool) -> None:
    arrays = {name: np.asarray(value) for name, value in _sae().params.items()}
    arrays["threshold"] = np.linspace(0.1, 1, _F, dtype=np.float32)
    if as_npz:
        np.savez(folder / "params.npz", **arrays)
    else:
        save_file({name.lower(): array for name, array in arrays.items()}, folder / "params.safetensors")


def _write_jump_relu(folder: Path) -> None:
    """dictionary_learning's class whose encoder does not subtract `b_dec`."""
    arrays = {name: np.asarray(value) for name, value in _sae().params.items()}
    torch_file.write(folder / "ae.pt", arrays | {"threshold": np.full(_F, 0.5, np.float32)})
    files.write_json(folder / "config.json", {"trainer": {"dict_class": "JumpReluAutoEncoder", "layer": 3}})


def _write_old_saelens(folder: Path) -> None:
    """A file of SAELens while it trains batch top-k: norms are folded, and the encoder takes x itself."""
    arrays = {name: np.array(value) for name, value in _sae().params.items()}
    save_file(arrays | {"topk_threshold": np.asarray(0.5, np.float32)}, folder / "sae_weights.safetensors")
    config = {"architecture": "matryoshka_batchtopk", "k": 3, "matryoshka_widths": [8], "apply_b_dec_to_input": False,
              "metadata": {"hook_name": "blocks.3.hook_resid_post"}}  # fmt: skip
    files.write_json(folder / "cfg.json", config)


SAE_READERS = {
    "dictionary_learning": _exported("dictionary_learning", "ae.pt", "config.json"),
    "dictionary_learning top-k": _exported("dictionary_learning", "ae.pt", "config.json", per_token=True),
    "dictionary_learning JumpReLU": FuzzedReader(_write_jump_relu, _read, ("ae.pt", "config.json")),
    "SAELens": _exported("saelens", "*"),
    "SAELens in training": FuzzedReader(_write_old_saelens, _read, ("*",)),
    "sparsify": FuzzedReader(_write_sparsify, _read, ("*",)),
    "sae.safetensors": _exported("safetensors", "*"),
    "Gemma Scope": FuzzedReader(lambda folder: _gemma(folder, True), _read, ("*",)),
    "Gemma Scope 2": FuzzedReader(lambda folder: _gemma(folder, False), _read, ("*",)),
    "finished autoencoder": FuzzedReader(
        lambda folder: save_sae(folder, _sae()), lambda folder: digest(load_sae(folder)), ("*",)
    ),
}

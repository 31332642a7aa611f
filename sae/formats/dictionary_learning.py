"""dictionary_learning's folder: `ae.pt` (named tensors) and `config.json` (`trainer` and `buffer`).

Its own loader and that of SAELens need both parts of the configuration. It does not record the factor that it divides
activations by; here that is written as the extra fields `norm_factor` and `norm_folded`.

`MatryoshkaBatchTopKSAE` (and so Microsoft's maira-2-sae) and `AutoEncoderTopK` are read and written; `BatchTopKSAE`,
`AutoEncoder` and `JumpReluAutoEncoder` are read.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from maira_jax.checkpoint import torch_file
from maira_jax.errors import UserError
from maira_jax.run import files
from sae.autoencoder import Sae
from sae.formats import raw_units
from sae.formats.registry import FORMATS, FormatWriter, SaeFormat

_FILE, _CONFIG = "ae.pt", "config.json"
_MATRYOSHKA, _TOP_K = "MatryoshkaBatchTopKSAE", "AutoEncoderTopK"
# The parameters of torch's Linear layers, and the arrays that they are (the matrices transposed).
_LINEAR = {"encoder.weight": "W_enc", "encoder.bias": "b_enc", "decoder.weight": "W_dec", "bias": "b_dec"}


def save(directory: Path, sae: Sae, fold_normalization: bool = True) -> None:
    """Writes `ae.pt` and `config.json` into `directory`, as dictionary_learning's trainer does.

    Raises:
      UserError: dictionary_learning has no class for this autoencoder.
    """
    params, threshold, factor = raw_units.exported(sae, fold_normalization)
    if isinstance(threshold, np.ndarray) or not sae.k:
        lacking = "one threshold for all features" if isinstance(threshold, np.ndarray) else "a known k"
        raise UserError(
            f"dictionary_learning's classes need {lacking}, which this autoencoder does not have: "
            "take dictionary_learning out of export.to"
        )
    scalars = {"k": np.int32(sae.k), "threshold": np.float32(threshold)}
    # dictionary_learning keeps one of the two matrices as the transposed view of a tensor, and so its file does.
    if sae.per_token:
        state = {
            "encoder.weight": np.ascontiguousarray(params["W_enc"].T),
            "encoder.bias": params["b_enc"],
            "decoder.weight": params["W_dec"].T,
            "b_dec": params["b_dec"],
        } | scalars
    else:
        transposed = {"W_enc": np.asfortranarray(params["W_enc"])}
        state = params | transposed | scalars | {"group_sizes": np.asarray(sae.group_sizes, np.int64)}
    torch_file.write(Path(directory) / _FILE, {name: np.asarray(array) for name, array in state.items()})
    trainer = _trainer(sae) | {"norm_factor": factor, "norm_folded": fold_normalization}
    files.write_json(Path(directory) / _CONFIG, {"trainer": trainer, "buffer": _buffer(sae)})


def load(path: Path) -> Sae:
    """Reads `ae.pt` (nothing in it is executed) and, if there is one, the `config.json` in the same folder.

    Raises:
      UserError: the file is damaged, or holds another class of autoencoder.
    """
    path = Path(path)
    state = torch_file.read(path)
    config = path.with_name(_CONFIG)
    trainer = raw_units.part(config, files.read_object(config), "trainer") if config.is_file() else {}
    if not isinstance(state, Mapping) or not all(isinstance(value, np.ndarray) for value in state.values()):
        raise UserError(f"{path} holds no named tensors: give a dictionary_learning file")
    state = {str(name): value for name, value in state.items()}
    linear = "encoder.weight" in state
    arrays = {
        _LINEAR.get(name, name): value.T if value.ndim == 2 and linear else value for name, value in state.items()
    }
    kind = str(trainer.get("dict_class", _class_of(state)))
    wanted = {*raw_units.ARRAYS} | _NEEDS.get(kind, set())
    if kind not in _NEEDS or not wanted <= set(arrays):
        lacking = ", ".join(sorted(wanted - set(arrays)))
        problem = f"lacks {lacking}" if lacking else f"is of class {kind}"
        raise UserError(f"{path} {problem}: give a file of one of {', '.join(_NEEDS)}")
    return raw_units.imported(
        path,
        arrays,
        threshold=-1.0 if kind == _TOP_K or "threshold" not in arrays else arrays["threshold"],
        k=arrays.get("k"),
        group_sizes=arrays["group_sizes"] if kind == _MATRYOSHKA else (),
        per_token=kind == _TOP_K,
        factor=trainer.get("norm_factor", 1.0),
        # dictionary_learning's trainer folds the normalisation into what it saves.
        folded=bool(trainer.get("norm_folded", True)),
        takes_raw=kind == "JumpReluAutoEncoder",
        meta={"dictionary_learning": trainer},
    )


# The arrays that a file of each class holds in addition to the four.
_NEEDS: dict[str, set[str]] = {
    _MATRYOSHKA: {"k", "threshold", "group_sizes"},
    "BatchTopKSAE": {"k", "threshold"},
    _TOP_K: {"k"},
    "JumpReluAutoEncoder": {"threshold"},
    "AutoEncoder": set(),
}


def _class_of(state: Mapping[str, np.ndarray]) -> str:
    """The class of a file without a configuration, by its arrays; BatchTopKSAE and AutoEncoderTopK have the same."""
    if "bias" in state:
        return "AutoEncoder"
    if "encoder.weight" in state:
        return "BatchTopKSAE or AutoEncoderTopK, and the config.json that says which is missing"
    return "JumpReluAutoEncoder" if np.ndim(state.get("threshold", 0.0)) else _MATRYOSHKA


def _layer(site: str) -> int:
    """The decoder block of a site, as dictionary_learning's `layer`; -1 for the embedding."""
    found = re.search(r"\.(\d+)\.", site)
    return int(found[1]) if found else -1


def _trainer(sae: Sae) -> dict[str, Any]:
    """The configuration that dictionary_learning's trainer writes; None for what an imported autoencoder lacks."""
    source, train, model = (sae.meta.get(key, {}) for key in ("source", "train", "sae"))
    imported = sae.meta.get("dictionary_learning", {})
    site = source.get("site", "")
    known = {
        "trainer_class": "TopKTrainer" if sae.per_token else "MatryoshkaBatchTopKTrainer",
        "dict_class": _TOP_K if sae.per_token else _MATRYOSHKA,
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
        "wandb_name": _TOP_K if sae.per_token else _MATRYOSHKA,
        "submodule_name": site,
    }
    fixed = ("trainer_class", "dict_class")  # an imported BatchTopKSAE is written as a Matryoshka of one group
    return {name: value if name in fixed else imported.get(name, value) for name, value in known.items()}


def _buffer(sae: Sae) -> dict[str, Any]:
    """Where the activations came from, in the fields of dictionary_learning's buffer."""
    return {
        "d_submodule": sae.d_model,
        "io": "out",
        "n_ctxs": None,
        "ctx_len": None,
        "refresh_batch_size": None,
        "out_batch_size": sae.meta.get("train", {}).get("batch_size"),
        "device": "cpu",
    }


FORMATS.register("dictionary_learning")(
    SaeFormat(
        "dictionary_learning",
        files=(_FILE,),
        endings=(".pt",),
        load=load,
        writer=FormatWriter(
            save,
            library="dictionary-learning",
            usage=(
                "from dictionary_learning.utils import load_dictionary\n\n"
                'dictionary, config = load_dictionary(FOLDER, device="cpu")\n'
                "features = dictionary.encode(activations)"
            ),
        ),
    )
)

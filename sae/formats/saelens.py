"""SAELens' folder: `cfg.json` and `sae_weights.safetensors`.

SAELens has batch top-k as a training architecture only. A finished autoencoder is written as its "jumprelu", with the
threshold repeated for each feature, or as its "topk" if the k largest features of each token are kept.
"""

import itertools
import re
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from maira_jax.errors import UserError
from maira_jax.run import files
from sae.autoencoder import Sae
from sae.formats import raw_units
from sae.formats.registry import FORMATS, FormatWriter, SaeFormat
from sae.variants import trained_as

_FILE, _CONFIG = "sae_weights.safetensors", "cfg.json"
# The version whose format is written; without one of 6 or later, SAELens reads a file as one of its older formats.
_VERSION = "6.54.12"
_NO_THRESHOLD = np.asarray(-1.0, np.float32)
_BATCH_TOP_K = ("batchtopk", "matryoshka_batchtopk")


def save(directory: Path, sae: Sae, fold_normalization: bool = True) -> None:
    """Writes `cfg.json` and `sae_weights.safetensors` into `directory`, as SAELens' `save_inference_model` does.

    Raises:
      UserError: the normalisation is not to be folded, and SAELens has no field for its factor.
    """
    if not fold_normalization:
        raise UserError(
            "SAELens' files have no field for a normalisation factor: leave export.fold_normalization on, or take "
            "saelens out of export.to"
        )
    params, threshold, _ = raw_units.exported(sae, fold_normalization)
    if not sae.per_token:
        params["threshold"] = np.broadcast_to(np.maximum(threshold, 0).astype(np.float32), sae.n_features).copy()
    directory = Path(directory)
    with files.atomic_path(directory / _FILE) as temporary:
        save_file(params, temporary)
    files.write_json(directory / _CONFIG, _config(sae))


def _config(sae: Sae) -> dict[str, Any]:
    """What SAELens writes into `cfg.json`; None for what this toolkit does not record."""
    source, variant = sae.meta.get("source", {}), trained_as(sae)
    config = {
        "architecture": "topk" if sae.per_token else "jumprelu",
        "d_in": sae.d_model,
        "d_sae": sae.n_features,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
    }
    if sae.per_token:
        config |= {"k": sae.k, "rescale_acts_by_decoder_norm": False}
    metadata = {
        "sae_lens_version": _VERSION,
        "sae_lens_training_version": None,
        "model_name": source.get("checkpoint", "unknown"),
        "hook_name": _hook(source.get("site", "")),
        "hook_head_index": None,
        "context_size": None,
        "prepend_bos": True,
        "dataset_path": None,
        "training_architecture": variant.saelens if variant else config["architecture"],
        "training_architecture_details": {
            "k": sae.k,
            "matryoshka_widths": list(itertools.accumulate(sae.group_sizes)),
        },
        "maira_jax": dict(sae.meta),
    }
    return config | {"metadata": metadata}


def _hook(site: str) -> str:
    """TransformerLens' name for a site of the language model; other sites keep their own."""
    found = re.fullmatch(r"language\.(\d+)\.(\w+)", site)
    if found:
        return f"blocks.{found[1]}.hook_{found[2]}"
    return "hook_embed" if site == "language.embed" else site


def load(path: Path) -> Sae:
    """Reads `sae_weights.safetensors` and the `cfg.json` in the same folder.

    These may be of a "jumprelu", "standard" or "topk" autoencoder, or what SAELens saves while it trains batch top-k.

    Raises:
      UserError: a file is damaged, or holds another architecture.
    """
    path = Path(path)
    config = _flat(path.with_name(_CONFIG))
    arrays, _ = raw_units.read_safetensors(path)
    kind = config.get("architecture", "standard")
    if kind not in ("jumprelu", "standard", "topk", *_BATCH_TOP_K):
        raise UserError(f"{path} is of SAELens' architecture {kind!r}: give a jumprelu, standard or topk autoencoder")
    for field, default in (("normalize_activations", "none"), ("reshape_activations", "none")):
        if config.get(field) not in (None, False, default):
            raise UserError(f"{path} was saved with {field} = {config[field]!r}: fold it in with SAELens first")
    if config.get("finetuning_scaling_factor"):
        raise UserError(f"{path} was saved with a finetuning scaling factor: fold it in with SAELens first")
    raw_units.refuse_missing(path, arrays, raw_units.ARRAYS)
    name = "topk_threshold" if kind in _BATCH_TOP_K else "threshold"
    if kind not in ("standard", "topk"):
        raw_units.refuse_missing(path, arrays, [name])
    details = raw_units.part(path, config, "training_architecture_details") or config
    metadata = raw_units.part(path, config, "maira_jax") or {"saelens": config}
    return raw_units.imported(
        path,
        arrays,
        threshold=arrays.get(name, _NO_THRESHOLD),
        k=details.get("k"),
        group_sizes=_sizes(path, details.get("matryoshka_widths") or (), arrays["b_enc"].size),
        per_token=kind == "topk",
        factor=metadata.get("normalization", 1.0),
        takes_raw=not config.get("apply_b_dec_to_input", True),
        unit_rows=bool(config.get("rescale_acts_by_decoder_norm", kind in _BATCH_TOP_K)),
        meta=metadata,
    )


def _flat(path: Path) -> dict[str, Any]:
    """The fields of a configuration and of its `metadata` in one dict, names of versions before 6 replaced."""
    config = files.read_object(path)
    flat = raw_units.part(path, config, "metadata") | {name: config[name] for name in config if name != "metadata"}
    if flat.get("activation_fn", flat.get("activation_fn_str")) == "topk":
        flat |= {"architecture": "topk", "k": raw_units.part(path, flat, "activation_fn_kwargs").get("k")}
    return flat


def _sizes(path: Path, widths: Any, n_features: int) -> tuple[int, ...]:
    """The group sizes for cumulative widths, of which SAELens may leave out the last."""
    ends = [raw_units.whole(path, "a Matryoshka width", width) for width in raw_units.listed(path, "widths", widths)]
    if ends and ends[-1] != n_features:
        ends.append(n_features)
    return tuple(end - start for start, end in zip([0, *ends], ends, strict=False))


FORMATS.register("saelens")(
    SaeFormat(
        "SAELens",
        files=(_FILE,),
        load=load,
        writer=FormatWriter(
            save,
            library="saelens",
            usage="from sae_lens import SAE\n\nsae = SAE.load_from_disk(FOLDER)\nfeatures = sae.encode(activations)",
        ),
    )
)

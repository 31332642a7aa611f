"""Autoencoders of sparsify and Gemma Scope, which are read and not written."""

from pathlib import Path

import numpy as np

from maira_jax.errors import UserError
from maira_jax.run import files
from sae.autoencoder import Sae
from sae.formats import raw_units

SPARSIFY_CONFIG = "cfg.json"
GEMMA_SCOPE, GEMMA_SCOPE_2 = "params.npz", "params.safetensors"


def load_sparsify(path: Path) -> Sae:
    """Reads sparsify's `sae.safetensors` and the `cfg.json` beside it: the k largest features of each token.

    Raises:
      UserError: a file is damaged, or holds a transcoder or another activation function.
    """
    path = Path(path)
    config = files.read_object(path.with_name(SPARSIFY_CONFIG))
    arrays, _ = raw_units.read_safetensors(path)
    if config.get("transcode") or config.get("skip_connection") or config.get("activation", "topk") != "topk":
        raise UserError(f"{path} is a transcoder or not of top-k: give a plain autoencoder of sparsify")
    names = {"encoder.weight": "W_enc", "encoder.bias": "b_enc", "W_dec": "W_dec", "b_dec": "b_dec"}
    missing = set(names) - set(arrays)
    if missing:
        raise UserError(f"{path} lacks {', '.join(sorted(missing))}: give a whole autoencoder of sparsify")
    ours = {ours: arrays[theirs] for theirs, ours in names.items()}
    ours["W_enc"] = ours["W_enc"].T
    return raw_units.imported(
        path, ours, threshold=-1.0, k=int(config.get("k", 0)), per_token=True, meta={"sparsify": config}
    )


def load_gemma_scope(path: Path) -> Sae:
    """Reads Gemma Scope's `params.npz`, or Gemma Scope 2's `params.safetensors`: a threshold for each feature.

    Their encoder does not subtract `b_dec`; here it is folded into `b_enc`.

    Raises:
      UserError: the file is damaged, or holds a transcoder.
    """
    path = Path(path)
    if path.suffix == ".npz":
        try:
            with np.load(path, allow_pickle=False) as file:
                raw = {name: file[name] for name in file.files}
        except Exception as error:  # numpy raises zip, value and end-of-file errors for damaged files
            reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
            raise UserError(f"{path} is truncated or damaged ({reason}): copy the file again") from error
    else:
        raw, _ = raw_units.read_safetensors(path)
    arrays = {name.replace("w_", "W_"): raw_units.as_float32(value) for name, value in raw.items()}
    missing = {*raw_units.ARRAYS, "threshold"} - set(arrays)
    if missing:
        raise UserError(f"{path} lacks {', '.join(sorted(missing))}: give a whole autoencoder of Gemma Scope")
    if set(arrays) - {*raw_units.ARRAYS, "threshold"} or arrays["W_dec"].shape != arrays["W_enc"].T.shape:
        raise UserError(f"{path} is a transcoder or was finetuned: give a plain autoencoder of Gemma Scope")
    if "embedding" in path.parts:
        # These were trained on embeddings multiplied by the root of their width.
        root = np.float32(np.sqrt(arrays["b_dec"].size))
        arrays |= {"W_enc": arrays["W_enc"] / root, "W_dec": arrays["W_dec"] * root}
    arrays = raw_units.centred(arrays)
    return raw_units.imported(
        path,
        {name: arrays[name] for name in raw_units.ARRAYS},
        threshold=arrays["threshold"],
        k=0,
        meta={"gemma_scope": str(path.parent)},
    )

"""sparsify's folder, which is read and not written: `sae.safetensors` and `cfg.json`."""

from pathlib import Path

from maira_jax.errors import UserError
from maira_jax.run import files
from sae.autoencoder import Sae
from sae.formats import raw_units
from sae.formats.registry import FORMATS, SaeFormat

_FILE, _CONFIG = "sae.safetensors", "cfg.json"
# sparsify's names of the four arrays.
_ARRAYS = {"encoder.weight": "W_enc", "encoder.bias": "b_enc", "W_dec": "W_dec", "b_dec": "b_dec"}


def load(path: Path) -> Sae:
    """Reads `sae.safetensors` and the `cfg.json` in the same folder: the k largest features of each token.

    Raises:
      UserError: a file is damaged, or holds a transcoder or another activation function.
    """
    path = Path(path)
    config = files.read_object(path.with_name(_CONFIG))
    found, _ = raw_units.read_safetensors(path)
    if config.get("transcode") or config.get("skip_connection") or config.get("activation", "topk") != "topk":
        raise UserError(f"{path} is a transcoder or not of top-k: give a plain autoencoder of sparsify")
    raw_units.refuse_missing(path, found, _ARRAYS)
    arrays = {ours: found[theirs] for theirs, ours in _ARRAYS.items()}
    arrays["W_enc"] = arrays["W_enc"].T  # [d, F]
    return raw_units.imported(
        path, arrays, threshold=-1.0, k=config.get("k"), per_token=True, meta={"sparsify": config}
    )


FORMATS.register("sparsify")(SaeFormat("sparsify", files=(_FILE,), companion=_CONFIG, load=load))

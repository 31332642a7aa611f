"""Converts a MAIRA-2 checkpoint from the Hugging Face layout (safetensors) to Flax parameters, or back with --reverse.

Result: WORKDIR/model, where the other commands look, or the folder --out. It holds the parameters (orbax), the
tokenizer and the configuration files. --checkpoint and --dtype set --config.model.checkpoint and
--config.model.dtype.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from launch import _main
from maira_jax.checkpoint import convert

_main.define_shortcut(
    "checkpoint",
    "Folder of the checkpoint to convert, or 'phantom' for the model that ships with the package.",
    lambda text: {"model.checkpoint": text},
)
_main.define_shortcut("dtype", "Type of the parameters: float32 or bfloat16.", lambda text: {"model.dtype": text})
_OUT = _main.list_in_help(flags.DEFINE_string("out", None, "Folder to write to instead of WORKDIR/model."))
_REVERSE = _main.list_in_help(
    flags.DEFINE_boolean(
        "reverse",
        None,
        "Convert back: from --checkpoint, a folder that this command wrote, to --out, a checkpoint in the Hugging Face "
        "layout with parameters of the same type.",
    )
)
flags.mark_flags_as_mutual_exclusive(["reverse", "dtype"])
flags.mark_flags_as_mutual_exclusive(["reverse", "mesh"])
flags.register_multi_flags_validator(
    ["reverse", "out"], lambda given: bool(given["out"] or not given["reverse"]), message="--reverse needs --out=DIR"
)


def _run(config: ConfigDict, workdir: Path) -> Mapping[str, Any]:
    out = None if _OUT.value is None else Path(_OUT.value)
    if _REVERSE.value and out is not None:
        return convert.reverse(config.model.checkpoint, out)
    return convert.run(config, workdir, out)


if __name__ == "__main__":
    _main.main(_run, __doc__ or "", reads=("model",))

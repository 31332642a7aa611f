"""Converts a MAIRA-2 checkpoint from the Hugging Face layout (safetensors) to Flax parameters.

Result: WORKDIR/model, which holds the parameters (orbax), the tokenizer and the configuration files. --checkpoint and
--dtype are short for --config.model.checkpoint and --config.model.dtype.
"""

from launch import _main
from maira_jax.checkpoint import convert

_main.define_shortcut(
    "checkpoint",
    "Folder of the checkpoint, or 'phantom' for the model that ships with the package.",
    lambda text: {"model.checkpoint": text},
)
_main.define_shortcut("dtype", "Type of the parameters: float32 or bfloat16.", lambda text: {"model.dtype": text})

if __name__ == "__main__":
    _main.main(convert.run, __doc__ or "", reads=("model",))

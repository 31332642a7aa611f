"""Writes the sparse autoencoder for other programs: dictionary_learning, SAELens and plain safetensors.

Result: WORKDIR/export, one folder per format, each with a model card.

  python -m launch.export --to=saelens,dictionary_learning
"""

from absl import flags

from launch import _main
from sae.formats import export, writers
from steer import stage_words

_main.define_shortcut(
    "to",
    f"Formats, separated by commas: {', '.join(writers())}. Sets export.to.",
    lambda text: {"export.to": tuple(text.split(","))},
)
_main.define_shortcut(
    "fold_normalization",
    "true or false: whether the exported autoencoder takes raw activations. Sets export.fold_normalization.",
    lambda text: {"export.fold_normalization": flags.BooleanParser().parse(text)},
)

if __name__ == "__main__":
    _main.main(export.run, __doc__ or "", reads=("sae", "export"), words=stage_words.of_export)

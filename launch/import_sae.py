"""Makes a released sparse autoencoder the run's own, from a file of any program whose files can be read.

Result: WORKDIR/sae, measured on the run's activations; every later command works as after a training.

  python -m launch.import_sae --workdir=runs/maira2 --sae=maira-2-sae
"""

from launch import _main
from sae import import_sae

_main.define_shortcut(
    "sae",
    "Folder or file of the autoencoder. Sets import_sae.sae.",
    lambda text: {"import_sae.sae": text},
)
_main.define_shortcut(
    "l0",
    "Set the threshold so that this many features are active per token on average, instead of keeping the file's. Sets "
    "import_sae.l0.",
    lambda text: {"import_sae.l0": int(text)},
)

if __name__ == "__main__":
    _main.main(import_sae.run, __doc__ or "", reads=("seed", "studies", "harvest", "train", "import_sae"))

"""Writes the sparse autoencoder for other programs: dictionary_learning and plain safetensors.

Result: WORKDIR/export.
"""

from launch import _main
from sae import export

if __name__ == "__main__":
    _main.main(export.run, __doc__ or "", reads=("export",))

"""An autoencoder of embeddings that you have as an array, for example of MedCLIP or RAD-DINO.

FILE is a .npy, .safetensors, .zarr or .parquet of [images, width]; --config.harvest.table=TABLE.csv names the images,
their patients and their labels (see `sae/activations/imported.py`). No model is needed:

  python -m launch.harvest --config=configs/embeddings.py:FILE --workdir=runs/embeddings
  python -m launch.train   --config=configs/embeddings.py:FILE --workdir=runs/embeddings
  python -m launch.export  --config=configs/embeddings.py:FILE --workdir=runs/embeddings
  python -m launch.label   --config=configs/embeddings.py:FILE --workdir=runs/embeddings

The last one measures features against the labels, and compares them with the embedding's own dimensions.
"""

from ml_collections import ConfigDict

from configs import base


def get_config(path: str = "embeddings.npy") -> ConfigDict:
    config = base.get_config()
    config.harvest.arrays = (path,)
    config.harvest.held_out_fraction = 0.1
    config.sae.expansion = 16  # 8192 features for embeddings of 512, as in MedSAE
    config.sae.k = 32
    config.train.loss_recovered_studies = 0  # there is no model to measure it in
    return config

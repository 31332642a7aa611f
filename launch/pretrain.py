"""Trains a small model of MAIRA-2's architecture from scratch and writes it as a Hugging Face checkpoint.

Result: WORKDIR/pretrain/checkpoint, which any command takes as --config.model.checkpoint. Interrupted, it resumes.
On the phantom it then compares the model's reports of held-out studies with the truth (accuracy.json).
"""

from launch import _main
from maira_jax.phantom.pretraining import stage

if __name__ == "__main__":
    _main.main(stage.run, __doc__ or "", reads=("seed", "studies", "harvest", "pretrain"))

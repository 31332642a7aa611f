"""Trains a small model of MAIRA-2's architecture from scratch and writes it as a Hugging Face checkpoint.

Result: WORKDIR/pretrain/checkpoint, which any command takes as --config.model.checkpoint. Interrupted, it resumes.
"""

from launch import _main
from maira_jax.pretrain import run

if __name__ == "__main__":
    _main.main(run.run, __doc__ or "", reads=("seed", "studies", "pretrain"))

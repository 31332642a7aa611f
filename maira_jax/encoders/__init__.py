"""Image encoders: a file each, in a registry. Each reads its checkpoint as it is distributed, and gives rows of an
image: an embedding, a class token, the mean of its patches, or each of them."""

from maira_jax.encoders import maira2_vision, medclip_resnet50, medclip_swin, rad_dino
from maira_jax.encoders.encoder import ENCODERS

__all__ = ["ENCODERS", "maira2_vision", "medclip_resnet50", "medclip_swin", "rad_dino"]

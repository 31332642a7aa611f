"""Autoencoders in files that other programs read and write: one file per format, import, export and the model card.

Reading gives an `Sae` in raw units, whatever the file: features are computed from activations as the model has them.
"""

from sae.formats import dictionary_learning, gemma_scope, saelens, safetensors, sparsify  # noqa: F401 - they register
from sae.formats.registry import FORMATS, FormatWriter, SaeFormat, load, writers

__all__ = ["FORMATS", "FormatWriter", "SaeFormat", "load", "writers"]

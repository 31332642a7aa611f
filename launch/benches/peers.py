"""dictionary_learning, imported unchanged.

It is installed without its dependencies, of which a training step and the loader use torch, einops and tqdm; the
others (nnsight, wandb, datasets, zstandard) only serve its data pipeline, and empty modules stand in for them.
"""

import importlib
import importlib.util
import sys
import types

from maira_jax.errors import UserError

INSTALL = "pip install --no-deps dictionary_learning==0.1.0 && pip install einops"
_UNUSED = {"nnsight": ("LanguageModel",), "datasets": ("load_dataset",), "zstandard": (), "wandb": ()}


def dictionary_learning(module: str) -> types.ModuleType:
    """A module of the package, e.g. "utils".

    Raises:
      UserError: the package is not installed.
    """
    if not all(importlib.util.find_spec(name) for name in ("dictionary_learning", "einops", "torch")):
        raise UserError(f"dictionary_learning is not installed: {INSTALL}")
    for name, attributes in _UNUSED.items():
        if name not in sys.modules and importlib.util.find_spec(name) is None:
            stub = types.ModuleType(name)
            for attribute in attributes:
                setattr(stub, attribute, object)
            sys.modules[name] = stub
    return importlib.import_module(f"dictionary_learning.{module}")

"""Programs that ours are compared with; a test is skipped where one is not installed."""

import importlib
import importlib.machinery
import importlib.metadata
import importlib.util
import logging
import sys
import types

import pytest

from launch.benches import peers
from maira_jax.errors import UserError


def dictionary_learning(module: str) -> types.ModuleType:
    """A module of dictionary_learning 0.1.0."""
    try:
        return peers.dictionary_learning(module)
    except UserError as error:
        pytest.skip(str(error))


def saelens() -> types.ModuleType:
    """The autoencoders of SAELens 6.54.12, `sae_lens.saes`, unchanged.

    It is installed without its dependencies. Its own start imports the training of language models, so a bare package
    takes its place; and modules without content stand in for the two that only serve what is not used here.
    """
    if not importlib.util.find_spec("sae_lens"):
        pytest.skip("SAELens is not installed: pip install --no-deps sae-lens==6.54.12 && pip install einops")
    if "sae_lens" not in sys.modules:
        _prepare_saelens()
    return importlib.import_module("sae_lens.saes")


def _stand_in(name: str, **content: object) -> None:
    module = types.ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    vars(module).update(content)
    sys.modules[name] = module


def _prepare_saelens() -> None:
    from torch import nn

    class HookPoint(nn.Identity):
        """Where TransformerLens lets a caller look at a value; nobody does here."""

    class HookedRootModule(nn.Module):
        def setup(self) -> None:
            """Registers the hook points."""

    if importlib.util.find_spec("requests") is None:
        _stand_in("requests", Response=object)
    _stand_in("transformer_lens")
    _stand_in("transformer_lens.hook_points", HookPoint=HookPoint)
    _stand_in("transformer_lens.HookedTransformer", HookedRootModule=HookedRootModule)
    found = importlib.util.find_spec("sae_lens")
    package = types.ModuleType("sae_lens")
    package.__spec__ = found
    package.__path__ = list(found.submodule_search_locations)
    package.__version__ = importlib.metadata.version("sae-lens")
    package.logger = logging.getLogger("sae_lens")
    sys.modules["sae_lens"] = package
    saes, registry = (importlib.import_module(f"sae_lens.{name}") for name in ("saes", "registry"))
    for name, kind in (("standard", "Standard"), ("topk", "TopK"), ("jumprelu", "JumpReLU")):
        registry.register_sae_class(name, getattr(saes, f"{kind}SAE"), getattr(saes, f"{kind}SAEConfig"))

"""Other libraries that ours is compared with, imported unchanged and driven by their own training steps.

dictionary_learning and SAELens are installed without their dependencies: training steps and the loaders need torch,
einops and tqdm alone (SAELens also transformers and simple_parsing); the others (nnsight, wandb, datasets, zstandard,
transformer_lens) serve the running of language models and are replaced by modules without content. sparsify is
installed with its dependencies and the same torch; delphi without vLLM, which finding examples does not need.
"""

import contextlib
import importlib
import importlib.machinery
import importlib.metadata
import importlib.util
import logging
import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from maira_jax.errors import UserError

INSTALL = (
    "pip install --no-deps dictionary_learning==0.1.0 sae-lens==6.54.12 && "
    "pip install einops simple_parsing torch==2.13.0 transformers eai-sparsify==1.3.3"
)
INSTALL_DELPHI = (
    "pip install torch==2.13.0 transformers orjson blobfile simple_parsing jaxtyping beartype asyncer faiss-cpu "
    "aiofiles datasets scikit-learn && "
    "pip install --no-deps eai-delphi==0.1.3 eai-sparsify sentence_transformers"
)
_UNUSED = {"nnsight": ("LanguageModel",), "datasets": ("load_dataset",), "zstandard": (), "wandb": ()}
_UNUSED_BY_SAELENS = {
    "requests": ("Response",),
    "wandb": (),
    "datasets": ("Dataset", "DatasetDict", "IterableDataset", "IterableDatasetDict", "load_dataset"),
}


def _need(*names: str) -> None:
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise UserError(f"{name} is not installed: {INSTALL}")


def dictionary_learning(module: str) -> types.ModuleType:
    """A module of the package, for example "utils".

    Raises:
      UserError: the package is not installed.
    """
    _need("dictionary_learning", "einops", "torch")
    with _without_content(_UNUSED):
        return importlib.import_module(f"dictionary_learning.{module}")


@contextlib.contextmanager
def _without_content(unused: Mapping[str, Sequence[str]]) -> Iterator[None]:
    """Modules of these names and attributes, where they are not installed; other libraries test whether they are."""
    names = [name for name in unused if name not in sys.modules and importlib.util.find_spec(name) is None]
    for name in names:
        _stand_in(name, **dict.fromkeys(unused[name], object))
    try:
        yield
    finally:
        for name in names:
            del sys.modules[name]


def _stand_in(name: str, **content: object) -> None:
    module = types.ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    vars(module).update(content)
    sys.modules[name] = module


def sae_lens(module: str) -> types.ModuleType:
    """A module of SAELens, for example "saes".

    Its own start imports the training of language models, so a package without content takes its place.

    Raises:
      UserError: it is not installed.
    """
    _need("sae_lens", "einops", "simple_parsing", "torch", "transformers")
    with _without_content(_UNUSED_BY_SAELENS):
        if "sae_lens" not in sys.modules:
            _prepare_sae_lens()
        return importlib.import_module(f"sae_lens.{module}")


def _prepare_sae_lens() -> None:
    nn: Any = torch().nn
    # Where TransformerLens lets a caller look at a value, and what registers such places: nobody looks here.
    hook_point = type("HookPoint", (nn.Identity,), {})
    root = type("HookedRootModule", (nn.Module,), {"setup": lambda self: None})
    _stand_in("transformer_lens")
    _stand_in("transformer_lens.hook_points", HookPoint=hook_point)
    _stand_in("transformer_lens.HookedTransformer", HookedRootModule=root)
    found = importlib.util.find_spec("sae_lens")
    if found is None or found.submodule_search_locations is None:
        raise UserError(f"sae_lens is no package: {INSTALL}")
    path = list(found.submodule_search_locations)
    _stand_in("sae_lens", __path__=path, __version__=importlib.metadata.version("sae-lens"))
    vars(sys.modules["sae_lens"]).update(__spec__=found, logger=logging.getLogger("sae_lens"))
    saes, registry = (importlib.import_module(f"sae_lens.{name}") for name in ("saes", "registry"))
    for name, kind in (("standard", "Standard"), ("topk", "TopK"), ("jumprelu", "JumpReLU")):
        registry.register_sae_class(name, getattr(saes, f"{kind}SAE"), getattr(saes, f"{kind}SAEConfig"))


def torch() -> types.ModuleType:
    """PyTorch.

    Raises:
      UserError: it is not installed.
    """
    _need("torch")
    return importlib.import_module("torch")


class PeerTrainer(Protocol):
    """The trainer of another library."""

    def step(self, x: Any) -> None:
        """Takes one training step on a torch batch [B, d]."""

    def params(self) -> dict[str, np.ndarray]:
        """The autoencoder: W_enc [d, F], b_enc [F], W_dec [F, d] with unit rows, b_dec [d]."""


class DictionaryLearning:
    """dictionary_learning's `MatryoshkaBatchTopKTrainer`, with its own defaults for all other options."""

    def __init__(self, d: int, n_features: int, k: int, fractions: Sequence[float], steps: int, **options: Any):
        module = dictionary_learning("trainers.matryoshka_batch_top_k")
        self._trainer = module.MatryoshkaBatchTopKTrainer(
            steps=steps,
            activation_dim=d,
            dict_size=n_features,
            k=k,
            layer=0,
            lm_name="benchmark",
            group_fractions=list(fractions),
            **options,
        )
        self._steps = 0

    def step(self, x: Any) -> None:
        """See `PeerTrainer`."""
        self._trainer.update(self._steps, x)
        self._steps += 1

    def params(self) -> dict[str, np.ndarray]:
        """See `PeerTrainer`."""
        return {name: value.detach().cpu().numpy() for name, value in self._trainer.ae.named_parameters()}


class SaeLens:
    """SAELens' `SAETrainer` on a "matryoshka_batchtopk", with its own defaults for all other options."""

    def __init__(
        self,
        d: int,
        n_features: int,
        k: int,
        widths: Sequence[int],
        steps: int,
        batch_size: int,
        device: str,
        **options: Any,
    ):
        module = sae_lens("saes.matryoshka_batchtopk_sae")
        config, trainer = sae_lens("config"), sae_lens("training.sae_trainer")
        sae = module.MatryoshkaBatchTopKTrainingSAEConfig(
            d_in=d, d_sae=n_features, k=k, matryoshka_widths=list(widths), device=device
        )
        settings = config.SAETrainerConfig(
            total_training_samples=steps * batch_size, train_batch_size_samples=batch_size, device=device, **options
        )
        self._trainer = trainer.SAETrainer(settings, module.MatryoshkaBatchTopKTrainingSAE(sae), iter(()))

    def step(self, x: Any) -> None:
        """See `PeerTrainer`."""
        self._trainer.step(x)
        self._trainer.n_training_steps += 1

    def params(self) -> dict[str, np.ndarray]:
        """See `PeerTrainer`."""
        values = {name: value.detach().cpu().numpy() for name, value in self._trainer.sae.named_parameters()}
        norm = np.linalg.norm(values["W_dec"], axis=1)
        return {
            "W_enc": values["W_enc"] * norm,
            "b_enc": values["b_enc"] * norm,
            "W_dec": values["W_dec"] / norm[:, None],
            "b_dec": values["b_dec"],
        }


class Sparsify:
    """Sparsify's `SparseCoder` (TopK without groups, its only kind) with the optimiser of its trainer."""

    def __init__(self, d: int, n_features: int, k: int, device: str):
        _need("sparsify", "schedulefree")
        module = importlib.import_module("sparsify")
        coder = importlib.import_module("sparsify.sparse_coder")
        sign_sgd = importlib.import_module("sparsify.sign_sgd")
        schedulefree = importlib.import_module("schedulefree")
        self._sae = coder.SparseCoder(d, module.SparseCoderConfig(num_latents=n_features, k=k), device=device)
        group = {"params": self._sae.parameters(), "lr": 5e-3 / (n_features / 2**14) ** 0.5}
        self._optimizer = schedulefree.ScheduleFreeWrapper(sign_sgd.SignSGD([group]), momentum=0.95)
        self._optimizer.train()

    def step(self, x: Any) -> None:
        """See `PeerTrainer`; in the order of sparsify's trainer."""
        self._sae.set_decoder_norm_to_unit_norm()
        self._sae(x).fvu.backward()
        self._sae.remove_gradient_parallel_to_decoder_directions()
        self._optimizer.step()
        self._optimizer.zero_grad()

    def params(self) -> dict[str, np.ndarray]:
        """See `PeerTrainer`."""
        return {
            "W_enc": self._sae.encoder.weight.detach().cpu().numpy().T,
            "b_enc": self._sae.encoder.bias.detach().cpu().numpy(),
            "W_dec": self._sae.W_dec.detach().cpu().numpy(),
            "b_dec": self._sae.b_dec.detach().cpu().numpy(),
        }


def delphi(module: str) -> types.ModuleType:
    """A module of EleutherAI/delphi, for example "latents".

    Raises:
      UserError: it is not installed.
    """
    try:
        return importlib.import_module(f"delphi.{module}")
    except ImportError as error:
        raise UserError(f"delphi cannot be imported ({error}): {INSTALL_DELPHI}") from error

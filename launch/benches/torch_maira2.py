"""MAIRA-2 composed of transformers' classes, for comparison: Dinov2, the projector's linear layers, and Llama."""

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np

from maira_jax.errors import UserError
from maira_jax.run import files

# transformers 5 has other names for DINOv2's attention than the checkpoint.
_RENAMED = {
    r"attention\.attention\.(query|key|value)": lambda m: f"attention.{m[1][0]}_proj",
    r"attention\.output\.dense": lambda m: "attention.o_proj",
}
_SDPA = {"attn_implementation": "sdpa"}


def modules() -> tuple[ModuleType, ModuleType]:
    """torch and transformers.

    Raises:
      UserError: one of them is not installed.
    """
    try:
        import torch
        import transformers
    except ImportError as error:
        raise UserError(f"{error.name} is not installed: pip install torch transformers") from error
    return torch, transformers


def torch_device() -> str:
    """ "cuda" where JAX and torch both have a GPU, else "cpu": programs are compared on one device."""
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # JAX is only asked here, and torch needs the memory
    return "cuda" if modules()[0].cuda.is_available() and jax.default_backend() == "gpu" else "cpu"


def torch_state() -> dict[str, Any]:
    """The device that torch computes on, and the most memory that it has held of a GPU in this process."""
    torch, transformers = modules()
    found = {"torch": torch.__version__, "transformers": transformers.__version__}
    if torch_device() == "cpu":
        return found | {"device": "cpu"}
    peak = round(torch.cuda.max_memory_allocated() / 2**30, 2)
    return found | {"device": torch.cuda.get_device_name(), "device_peak_gib": peak}


@contextlib.contextmanager
def _made_on(device: str, dtype: str) -> Iterator[None]:
    """Modules are made on the device, in the dtype."""
    torch, before = modules()[0], modules()[0].get_default_dtype()
    torch.set_default_dtype(getattr(torch, dtype))
    try:
        with torch.device(device):
            yield
    finally:
        torch.set_default_dtype(before)


def _tensors(directory: Path) -> dict[str, Any]:
    """The weights of a checkpoint; none of one that has only its description."""
    modules()
    from safetensors.torch import load_file

    return {name: value for path in directory.glob("*.safetensors") for name, value in load_file(path).items()}


def llama(directory: Path, dtype: str = "float32") -> Any:
    """The language model of a checkpoint as transformers' `LlamaForCausalLM`, on `torch_device`.

    Where the directory has no weights, they are those that transformers initialises.
    """
    transformers, text = modules()[1], files.read_json(directory / "config.json")["text_config"]
    with _made_on(torch_device(), dtype):
        model: Any = transformers.LlamaForCausalLM(transformers.LlamaConfig(**text | _SDPA))
    _load(model, _tensors(directory), "language_model.")
    return model.eval()


def _load(module: Any, tensors: dict[str, Any], prefix: str) -> None:
    own, mapped = module.state_dict().keys(), {}
    for name, tensor in tensors.items():
        key = name.removeprefix(prefix)
        if name.startswith(prefix):
            for pattern, new in _RENAMED.items():
                key = key if key in own else re.sub(pattern, new, key)
            mapped[key] = tensor
    if tensors:
        module.load_state_dict(mapped, strict=True)


class TorchMaira2:
    """A model in the Hugging Face layout, with the weights of its folder; those of transformers where it has none.

    Attributes:
      device: what it lies on.
      vision, language: transformers' `Dinov2Backbone` and `LlamaModel`, without a head.

    Raises:
      UserError: torch or transformers is not installed.
    """

    def __init__(self, directory: Path, dtype: str = "float32"):
        self.torch, transformers = modules()
        torch, self.device, tensors = self.torch, torch_device(), _tensors(directory)
        self._dtype = getattr(torch, dtype)
        config = files.read_json(directory / "config.json")
        vision, width = config["vision_config"], config["text_config"]["hidden_size"]
        widths = [vision["hidden_size"], *[width] * config["projector_n_layers"]]
        with _made_on(self.device, dtype):
            self.vision: Any = transformers.Dinov2Backbone(transformers.Dinov2Config(**vision | _SDPA)).eval()
            linears = [torch.nn.Linear(*pair) for pair in zip(widths, widths[1:], strict=False)]
        self.language: Any = llama(directory, dtype).model
        _load(self.vision, tensors, "vision_tower.")
        for layer, linear in enumerate(linears):
            _load(linear, tensors, f"multi_modal_projector.layers.{2 * layer}.")
        self._projector, self._image_token = linears, config["image_token_index"]

    def embed(self, tokens: np.ndarray, pixels: np.ndarray) -> Any:
        """The language model's input [batch, positions, d]; pixels: all rows' images, [images, 3, side, side]."""
        torch = self.torch
        ids = torch.from_numpy(tokens).long().to(self.device)
        x = self.language.get_input_embeddings()(ids)
        images = torch.from_numpy(pixels).to(self.device, self._dtype)
        features = self.vision(images).feature_maps[-1][:, 1:]
        for layer, linear in enumerate(self._projector):
            features = linear(torch.nn.functional.gelu(features) if layer else features)
        x[ids == self._image_token] = features.reshape(-1, x.shape[-1])
        return x

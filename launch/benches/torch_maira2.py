"""MAIRA-2 composed of transformers' classes, for comparison: Dinov2, the projector's linear layers, and Llama."""

import re
from pathlib import Path
from typing import Any

import numpy as np

from maira_jax.errors import UserError
from maira_jax.run import files

# transformers 5 has other names for DINOv2's attention than the checkpoint.
_RENAMED = {
    r"attention\.attention\.(query|key|value)": lambda m: f"attention.{m[1][0]}_proj",
    r"attention\.output\.dense": lambda m: "attention.o_proj",
}


class TorchMaira2:
    """A checkpoint in the Hugging Face layout, float32.

    Attributes:
      vision, language: transformers' `Dinov2Backbone` and `LlamaModel`, without a head.

    Raises:
      UserError: torch or transformers is not installed.
    """

    def __init__(self, directory: Path):
        try:
            import torch
            from safetensors.torch import load_file
            from transformers import Dinov2Backbone, Dinov2Config, LlamaConfig, LlamaModel
        except ImportError as error:
            raise UserError(f"{error.name} is not installed: pip install torch transformers") from error
        self.torch = torch
        config = files.read_json(directory / "config.json")
        text, vision = config["text_config"], config["vision_config"]
        tensors = {name: value for path in directory.glob("*.safetensors") for name, value in load_file(path).items()}
        self.vision: Any = Dinov2Backbone(Dinov2Config(**vision | {"attn_implementation": "sdpa"}))
        self.language: Any = LlamaModel(LlamaConfig(**text | {"attn_implementation": "sdpa"}))
        self._load(self.vision, tensors, "vision_tower.")
        self._load(self.language, tensors, "language_model.model.")
        self._projector = [
            (
                tensors[f"multi_modal_projector.layers.{2 * i}.weight"],
                tensors[f"multi_modal_projector.layers.{2 * i}.bias"],
            )
            for i in range(config["projector_n_layers"])
        ]
        self._image_token = config["image_token_index"]

    def _load(self, module: Any, tensors: dict[str, Any], prefix: str) -> None:
        own, mapped = module.state_dict().keys(), {}
        for name, tensor in tensors.items():
            key = name.removeprefix(prefix)
            if name.startswith(prefix):
                for pattern, new in _RENAMED.items():
                    key = key if key in own else re.sub(pattern, new, key)
                mapped[key] = tensor
        module.load_state_dict(mapped, strict=True)
        module.eval()

    def embed(self, tokens: np.ndarray, pixels: np.ndarray) -> Any:
        """The language model's input [batch, positions, d]; pixels: all rows' images, [images, 3, side, side]."""
        torch = self.torch
        ids = torch.from_numpy(tokens).long()
        x = self.language.get_input_embeddings()(ids)
        features = self.vision(torch.from_numpy(pixels)).feature_maps[-1][:, 1:]
        for layer, (weight, bias) in enumerate(self._projector):
            features = torch.nn.functional.linear(
                torch.nn.functional.gelu(features) if layer else features, weight, bias
            )
        x[ids == self._image_token] = features.reshape(-1, x.shape[-1])
        return x

"""MAIRA-2 composed of the PyTorch classes in transformers, as the reference for the Flax model."""

import re
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from transformers import Dinov2Backbone, Dinov2Config, LlamaConfig, LlamaForCausalLM

from maira_jax.run import files

# transformers 5 renamed DINOv2's attention.
_RENAMED = (
    (r"attention\.attention\.(query|key|value)", lambda m: f"attention.{m[1][0]}_proj"),
    (r"attention\.output\.dense", lambda m: "attention.o_proj"),
)


class Maira2Oracle:
    """Reads a checkpoint in the Hugging Face layout. Everything runs in eager mode without a cache."""

    def __init__(self, directory: Path, dtype: torch.dtype = torch.float32):
        config = files.read_json(directory / "config.json")
        tensors = load_file(directory / "model.safetensors")
        self.vision = Dinov2Backbone(Dinov2Config(**config["vision_config"], attn_implementation="sdpa"))
        self.language = LlamaForCausalLM(LlamaConfig(**config["text_config"], attn_implementation="sdpa"))
        widths = [config["vision_config"]["hidden_size"]] + [config["text_config"]["hidden_size"]] * 4
        self.projector = torch.nn.ModuleList(torch.nn.Linear(a, b) for a, b in zip(widths, widths[1:], strict=False))
        self._load(self.vision, tensors, "vision_tower.")
        self._load(self.language, tensors, "language_model.")
        projector = {
            re.sub(r"layers\.(\d)", lambda m: str(int(m[1]) // 2), key): value for key, value in tensors.items()
        }
        self._load(self.projector, projector, "multi_modal_projector.")
        self.image_token = config["image_token_index"]
        for module in (self.vision, self.language, self.projector):
            module.eval().to(dtype)
        self.dtype = dtype

    @staticmethod
    def _load(module: torch.nn.Module, tensors: dict[str, torch.Tensor], prefix: str) -> None:
        own = module.state_dict().keys()
        mapped = {}
        for name, tensor in tensors.items():
            if not name.startswith(prefix):
                continue
            key = name.removeprefix(prefix)
            if key not in own:
                for pattern, new in _RENAMED:
                    key = re.sub(pattern, new, key)
            mapped[key] = tensor
        module.load_state_dict(mapped, strict=True)

    @torch.no_grad()
    def features(self, pixels: np.ndarray) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """pixels: [images, size, size, 3] -> projected patches and DINOv2's hidden states."""
        x = torch.from_numpy(pixels).permute(0, 3, 1, 2).to(self.dtype)
        out = self.vision(x, output_hidden_states=True)
        x = out.feature_maps[-1][:, 1:]
        for layer, linear in enumerate(self.projector):
            x = linear(torch.nn.functional.gelu(x) if layer else x)
        return x, list(out.hidden_states)

    @torch.no_grad()
    def forward(self, tokens: np.ndarray, mask: np.ndarray, pixels: np.ndarray | None) -> tuple[torch.Tensor, list]:
        """pixels: the images of all rows, in order. Returns logits and Llama's hidden states (last one normed)."""
        ids = torch.from_numpy(tokens).long()
        x = self.language.get_input_embeddings()(ids)
        if pixels is not None:
            x[ids == self.image_token] = self.features(pixels)[0].reshape(-1, x.shape[-1])
        attention = torch.from_numpy(mask).long()
        positions = (attention.cumsum(1) - 1).clamp(min=0)
        out = self.language(
            inputs_embeds=x,
            attention_mask=attention,
            position_ids=positions,
            output_hidden_states=True,
            use_cache=False,
        )
        return out.logits, list(out.hidden_states)

    def greedy(self, tokens: np.ndarray, mask: np.ndarray, pixels: np.ndarray | None, steps: int) -> np.ndarray:
        """Plain greedy decoding that runs the whole sequence anew for every token. [batch, steps]"""
        written = []
        for _ in range(steps):
            choice = self.forward(tokens, mask, pixels)[0][:, -1].argmax(-1).numpy()[:, None]
            written.append(choice)
            tokens = np.concatenate([tokens, choice.astype(tokens.dtype)], axis=1)
            mask = np.concatenate([mask, np.ones_like(choice, bool)], axis=1)
        return np.concatenate(written, axis=1)

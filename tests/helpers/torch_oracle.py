"""MAIRA-2 composed of the PyTorch classes in transformers 5, as the reference for the Flax model.

As a program (`python -m tests.helpers.torch_oracle CHECKPOINT INPUTS.npz OUTPUTS.npz STEPS`) it does what
`tests.helpers.oracle_4_51.reference` does.
"""

import re
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from transformers import Dinov2Backbone, Dinov2Config, GenerationConfig, LlamaConfig, LlamaForCausalLM

from maira_jax.run import files
from tests.helpers import torch_sites

# transformers 5 renamed DINOv2's attention.
_RENAMED = (
    (r"attention\.attention\.(query|key|value)", lambda m: f"attention.{m[1][0]}_proj"),
    (r"attention\.output\.dense", lambda m: "attention.o_proj"),
)


class Maira2Oracle:
    """Reads a checkpoint in the Hugging Face layout."""

    def __init__(self, directory: Path, dtype: torch.dtype = torch.float32):
        config = files.read_json(directory / "config.json")
        tensors = {name: value for path in directory.glob("*.safetensors") for name, value in load_file(path).items()}
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
        # No end token: a configuration that is handed to `generate` would get the model's own.
        self.language.generation_config = GenerationConfig(do_sample=False, pad_token_id=0)

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

    @property
    def parts(self) -> tuple[torch.nn.Module, torch.nn.ModuleList, torch.nn.Module]:
        """What `tests.helpers.torch_sites` hooks into."""
        return self.vision, self.projector, self.language

    @torch.no_grad()
    def embed(self, tokens: np.ndarray, pixels: np.ndarray | None) -> torch.Tensor:
        """The language model's input. pixels: the images of all rows, in order, [images, size, size, 3]."""
        ids = torch.from_numpy(tokens).long()
        x = self.language.get_input_embeddings()(ids)
        if pixels is not None:
            image = torch.from_numpy(pixels).permute(0, 3, 1, 2).to(self.dtype)
            features = self.vision(image).feature_maps[-1][:, 1:]
            for layer, linear in enumerate(self.projector):
                features = linear(torch.nn.functional.gelu(features) if layer else features)
            x[ids == self.image_token] = features.reshape(-1, x.shape[-1])
        return x

    @torch.no_grad()
    def forward(self, tokens: np.ndarray, mask: np.ndarray, pixels: np.ndarray | None) -> np.ndarray:
        """Logits as float32, in one pass without a cache."""
        attention = torch.from_numpy(mask).long()
        out = self.language(
            inputs_embeds=self.embed(tokens, pixels),
            attention_mask=attention,
            position_ids=(attention.cumsum(1) - 1).clamp(min=0),
            use_cache=False,
        )
        return out.logits.float().numpy()

    def sites(
        self, tokens: np.ndarray, mask: np.ndarray, pixels: np.ndarray | None, wanted: list[str]
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Logits and the activations of the `wanted` sites."""
        with torch_sites.recorded(wanted, *self.parts) as seen:
            logits = self.forward(tokens, mask, pixels)
        return logits, {name: seen[name].float().numpy() for name in wanted}

    def greedy(self, tokens: np.ndarray, mask: np.ndarray, pixels: np.ndarray | None, steps: int) -> np.ndarray:
        """transformers' own greedy decoding, with its cache, of rows that it sees padded on the left. [batch, steps]"""
        tokens, mask = torch_sites.left_padded(tokens, mask), torch_sites.left_padded(mask, mask)
        written = self.language.generate(
            inputs_embeds=self.embed(tokens, pixels),
            attention_mask=torch.from_numpy(mask).long(),
            max_new_tokens=steps,
        )
        return written.numpy()


def main(checkpoint: str, inputs: str, outputs: str, steps: str) -> None:
    oracle = Maira2Oracle(Path(checkpoint))
    layers = len(oracle.vision.encoder.layer), len(oracle.projector), len(oracle.language.model.layers)

    def run(case: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        batch = case["tokens"], case["mask"], case["pixels"]
        logits, sites = oracle.sites(*batch, torch_sites.names(*layers))
        return {"logits": logits, "greedy": oracle.greedy(*batch, int(steps)), **sites}

    torch_sites.answer(inputs, outputs, run)


if __name__ == "__main__":
    main(*sys.argv[1:])

"""MAIRA-2 in transformers 4.51.3, the last version that its authors tested, on given weights and inputs.

Run in the environment that `build.sh` makes:

  python -m tests.helpers.oracle_4_51.reference CHECKPOINT INPUTS.npz OUTPUTS.npz [STEPS]

INPUTS holds a case's `<case>/tokens`, `<case>/mask` and `<case>/pixels`; OUTPUTS gets `<case>/logits`,
`<case>/greedy` and every site's activations under `<case>/<site>`. The model is LLaVA's own class with what MAIRA-2's
remote code changes in it: DINOv2 as a backbone (with its last LayerNorm), and a projector of several layers.
"""

import sys

import numpy as np
import torch
from transformers import (
    AutoBackbone,
    AutoModelForCausalLM,
    GenerationConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from tests.helpers import torch_sites


class Maira2Config(LlavaConfig):
    model_type = "maira2"


class Projector(torch.nn.Module):
    def __init__(self, config: Maira2Config):
        super().__init__()
        width = config.text_config.hidden_size
        layers = [torch.nn.Linear(config.vision_config.hidden_size, width)]
        for _ in range(config.projector_n_layers - 1):
            layers += [torch.nn.GELU(), torch.nn.Linear(width, width)]
        self.layers = torch.nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


class Maira2ForConditionalGeneration(LlavaForConditionalGeneration):
    config_class = Maira2Config

    def __init__(self, config: Maira2Config):
        super(LlavaForConditionalGeneration, self).__init__(config)
        self.vision_tower = AutoBackbone.from_config(config.vision_config)
        self.multi_modal_projector = Projector(config)
        self.language_model = AutoModelForCausalLM.from_config(config.text_config)
        self.vocab_size = config.text_config.vocab_size
        self.pad_token_id = config.pad_token_id
        self.post_init()

    def get_image_features(self, pixel_values, vision_feature_layer, vision_feature_select_strategy, **kwargs):
        assert vision_feature_select_strategy == "default"
        return self.multi_modal_projector(self.vision_tower(pixel_values).feature_maps[vision_feature_layer][:, 1:])


@torch.no_grad()
def run(model: Maira2ForConditionalGeneration, case: dict[str, np.ndarray], steps: int) -> dict[str, np.ndarray]:
    """Logits, greedy tokens and every site's activations of one batch."""
    linears = [layer for layer in model.multi_modal_projector.layers if isinstance(layer, torch.nn.Linear)]
    vision, text = model.config.vision_config, model.config.text_config
    wanted = torch_sites.names(vision.num_hidden_layers, len(linears), text.num_hidden_layers)
    mask = torch.from_numpy(case["mask"]).long()
    pixels = torch.from_numpy(case["pixels"]).permute(0, 3, 1, 2)
    inputs = {"input_ids": torch.from_numpy(case["tokens"]).long(), "attention_mask": mask, "pixel_values": pixels}
    with torch_sites.recorded(wanted, model.vision_tower, linears, model.language_model) as seen:
        logits = model(**inputs, position_ids=(mask.cumsum(1) - 1).clamp(min=0), use_cache=False).logits
    left = {
        name: torch.from_numpy(torch_sites.left_padded(value.numpy(), case["mask"]))
        for name, value in inputs.items()
        if name != "pixel_values"
    }
    greedy = model.generate(**left, pixel_values=pixels, max_new_tokens=steps)
    found = {"logits": logits, "greedy": greedy[:, mask.shape[1] :], **seen}
    return {name: value.numpy() for name, value in found.items()}


def main(checkpoint: str, inputs: str, outputs: str, steps: str = "64") -> None:
    model = Maira2ForConditionalGeneration.from_pretrained(checkpoint, config=Maira2Config.from_pretrained(checkpoint))
    model.eval()
    # No end token: a configuration that is handed to `generate` would get the model's own.
    model.generation_config = GenerationConfig(do_sample=False, pad_token_id=0)
    torch_sites.answer(inputs, outputs, lambda case: run(model, case, int(steps)))


if __name__ == "__main__":
    main(*sys.argv[1:])

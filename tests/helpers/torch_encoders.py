"""Image encoders of transformers with random weights, and their tensors under the names of published checkpoints."""

import re
from pathlib import Path

import numpy as np
import torch
from transformers import Dinov2Config, Dinov2Model, ResNetConfig, ResNetModel, SwinConfig, SwinModel

from maira_jax.encoders import medclip_resnet50, medclip_swin
from maira_jax.run import files

RESNET = medclip_resnet50.ResNetConfig(size=64, stem=8, widths=(4, 8), depths=(2, 1), embedding=6)
SWIN = medclip_swin.SwinConfig(size=64, window=4, width=8, depths=(2, 3, 2), heads=(2, 4, 4), embedding=6)
# The names of transformers' Swin before version 5.
_SWIN = (
    (r"\.attention\.q_proj", ".attention.self.query"),
    (r"\.attention\.k_proj", ".attention.self.key"),
    (r"\.attention\.v_proj", ".attention.self.value"),
    (r"\.attention\.o_proj", ".attention.output.dense"),
    (r"\.attention\.relative_position_bias\.", ".attention.self."),
    (r"\.mlp\.fc1", ".intermediate.dense"),
    (r"\.mlp\.fc2", ".output.dense"),
)
# torchvision's names of the parts of transformers' ResNet.
_RESNET = (
    (r"^embedder\.embedder\.convolution", "conv1"),
    (r"^embedder\.embedder\.normalization", "bn1"),
    (r"^encoder\.stages\.(\d+)\.layers\.(\d+)", lambda m: f"layer{int(m[1]) + 1}.{m[2]}"),
    (r"\.layer\.(\d)\.convolution", lambda m: f".conv{int(m[1]) + 1}"),
    (r"\.layer\.(\d)\.normalization", lambda m: f".bn{int(m[1]) + 1}"),
    (r"\.shortcut\.convolution", ".downsample.0"),
    (r"\.shortcut\.normalization", ".downsample.1"),
)


def _renamed(name: str, patterns) -> str:
    for pattern, new in patterns:
        name = re.sub(pattern, new, name)
    return name


def _randomise(model: torch.nn.Module, generator: torch.Generator) -> None:
    """No norm, and no stored statistic, keeps its initial value."""
    for module in model.modules():
        if isinstance(module, (torch.nn.BatchNorm2d, torch.nn.LayerNorm)):
            torch.nn.init.normal_(module.weight, 1.0, 0.3, generator)
            torch.nn.init.normal_(module.bias, 0.0, 0.3, generator)
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.running_mean, 0.0, 0.5, generator)
            torch.nn.init.uniform_(module.running_var, 0.3, 3.0, generator)


class TorchResNet:
    """transformers' ResNet and a last layer.

    Attributes:
      state: its tensors as MedCLIP's file has them.
    """

    def __init__(self, cfg: medclip_resnet50.ResNetConfig, seed: int = 0):
        torch.manual_seed(seed)
        self._model = ResNetModel(
            ResNetConfig(
                embedding_size=cfg.stem,
                hidden_sizes=[4 * width for width in cfg.widths],
                depths=list(cfg.depths),
                layer_type="bottleneck",
            )
        ).eval()
        _randomise(self._model, torch.Generator().manual_seed(seed))
        self._fc = torch.nn.Linear(4 * cfg.widths[-1], cfg.embedding, bias=False)
        tensors = {_renamed(name, _RESNET): tensor for name, tensor in self._model.state_dict().items()}
        self.state = {f"vision_model.model.{name}": tensor for name, tensor in tensors.items()}
        self.state |= {"vision_model.model.fc.weight": self._fc.weight.detach()}

    @torch.no_grad()
    def embedding(self, pixels: np.ndarray) -> np.ndarray:
        """pixels: [batch, size, size, 3]; the embedding before it is divided by its length."""
        found = self._model(torch.from_numpy(pixels).permute(0, 3, 1, 2)).pooler_output.flatten(1)
        return self._fc(found).numpy()


class TorchSwin:
    """transformers' Swin and a last layer.

    Attributes:
      state: its tensors as MedCLIP's file has them.
    """

    def __init__(self, cfg: medclip_swin.SwinConfig, seed: int = 0):
        torch.manual_seed(seed)
        self._model = SwinModel(
            SwinConfig(
                image_size=cfg.size,
                patch_size=cfg.patch,
                embed_dim=cfg.width,
                depths=list(cfg.depths),
                num_heads=list(cfg.heads),
                window_size=cfg.window,
            )
        ).eval()
        generator = torch.Generator().manual_seed(seed)
        _randomise(self._model, generator)
        for name, parameter in self._model.named_parameters():
            if "relative_position_bias" in name or name.endswith("bias"):
                torch.nn.init.normal_(parameter, 0.0, 0.5, generator)
        self._projection = torch.nn.Linear(cfg.width * 2 ** (len(cfg.depths) - 1), cfg.embedding, bias=False)
        tensors = {_renamed(name, _SWIN): tensor for name, tensor in self._model.state_dict().items()}
        self.state = {f"vision_model.model.{name}": tensor for name, tensor in tensors.items()}
        self.state |= {"vision_model.projection_head.weight": self._projection.weight.detach()}
        # A buffer that older versions of transformers saved.
        index = "vision_model.model.encoder.layers.0.blocks.0.attention.self.relative_position_index"
        self.state |= {index: torch.zeros(cfg.window**2, cfg.window**2, dtype=torch.int64)}

    @torch.no_grad()
    def embedding(self, pixels: np.ndarray) -> np.ndarray:
        """pixels: [batch, size, size, 3]; the embedding before it is divided by its length."""
        found = self._model(torch.from_numpy(pixels).permute(0, 3, 1, 2)).pooler_output
        return self._projection(found).numpy()


class TorchDinov2:
    """transformers' DINOv2.

    Args:
      folder: its checkpoint is written there, under the names of the running version of transformers.
    """

    def __init__(self, folder: Path, seed: int = 0, **config):
        torch.manual_seed(seed)
        self._model = Dinov2Model(Dinov2Config(**config)).eval()
        generator = torch.Generator().manual_seed(seed)
        _randomise(self._model, generator)
        for name, parameter in self._model.named_parameters():
            if "lambda1" in name:
                torch.nn.init.normal_(parameter, 0.5, 0.2, generator)
        self._model.save_pretrained(folder)
        size = config["image_size"]
        preprocessor = {
            "size": {"shortest_edge": size},
            "crop_size": {"height": size, "width": size},
            "image_mean": [0.5307] * 3,
            "image_std": [0.2583] * 3,
        }
        files.write_json(folder / "preprocessor_config.json", preprocessor)

    @torch.no_grad()
    def rows(self, pixels: np.ndarray, block: int | None = None) -> dict[str, np.ndarray]:
        """What is given of images, pixels: [batch, size, size, 3], after a block; each [batch, rows, width]."""
        found = self._model(torch.from_numpy(pixels).permute(0, 3, 1, 2), output_hidden_states=True)
        x = found.last_hidden_state if block is None else found.hidden_states[block + 1]
        patches = x[:, 1:]
        cls = found.pooler_output[:, None] if block is None else x[:, :1]
        rows = {"cls": cls, "mean": patches.mean(1, keepdim=True), "patches": patches}
        return {name: value.numpy() for name, value in rows.items()}

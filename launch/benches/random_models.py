"""MAIRA-2's architecture with random weights, in the sizes that benchmarks run."""

import shutil
from pathlib import Path

import jax
import numpy as np

from maira_jax.checkpoint import convert
from maira_jax.inputs.tokens import Tokenizer
from maira_jax.model import maira2
from maira_jax.model.config import Maira2Config, TextConfig, VisionConfig, to_hf_dict
from maira_jax.run import files

# (vision: width, layers, heads, patch, image), (text: width, MLP, layers, heads, vocabulary)
SIZES = {
    "phantom": ((128, 4, 4, 28, 112), (128, 352, 6, 4, 1167)),
    "100m": ((384, 6, 6, 14, 224), (768, 2048, 8, 12, 32207)),
}
_TOKENIZER = (
    "added_tokens.json",
    "chat_template.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
)


def config_of(size: str, image_token_id: int | None = None) -> Maira2Config:
    """The configuration of one of `SIZES`; the image token is the last one of the vocabulary unless given."""
    (v_width, v_layers, v_heads, patch, image), (width, mlp, layers, heads, vocab) = SIZES[size]
    vision = VisionConfig(v_width, v_layers, v_heads, 4 * v_width, patch, image, 1e-6)
    text = TextConfig(vocab, width, mlp, layers, heads, heads, width // heads, 1e-5, 10000.0, 1.5)
    token = vocab - 1 if image_token_id is None else image_token_id
    return Maira2Config(vision, text, image_token_id=token, projector_n_layers=4)


def write_checkpoint(size: str, directory: Path) -> None:
    """Writes a whole checkpoint in the Hugging Face layout, with the phantom's tokenizer."""
    directory.mkdir(parents=True, exist_ok=True)
    phantom = convert.checkpoint_dir(convert.PHANTOM)
    for name in _TOKENIZER:
        shutil.copy(phantom / name, directory)
    cfg = config_of(size, Tokenizer.from_dir(phantom).image_id)
    files.write_json(directory / "config.json", to_hf_dict(cfg))
    side = cfg.vision.image_size
    preprocessor = files.read_json(phantom / "preprocessor_config.json")
    preprocessor |= {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}
    files.write_json(directory / "preprocessor_config.json", preprocessor)
    convert.to_hf(maira2.init(cfg, jax.random.key(0)), cfg, directory, np.dtype(np.float32))

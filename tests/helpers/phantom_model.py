"""Files of an untrained model that reads phantom studies."""

from pathlib import Path

import jax

from maira_jax.checkpoint import store
from maira_jax.inputs.prompt import reporting_prompt
from maira_jax.model import maira2
from maira_jax.model.config import to_hf_dict
from maira_jax.phantom.pretraining import tokenizer_files
from maira_jax.phantom.pretraining.recipe import LanguageSize, VisionSize, model_config
from maira_jax.run import files

D_MODEL = 32
PREPROCESSOR = {
    "crop_size": {"height": 28, "width": 28},
    "image_mean": [0.5307] * 3,
    "image_processor_type": "BitImageProcessor",
    "image_std": [0.2583] * 3,
    "resample": 3,
    "size": {"shortest_edge": 28},
} | {f"do_{step}": True for step in ("center_crop", "convert_rgb", "normalize", "rescale", "resize")}


def write_model(directory: Path, studies: list) -> None:
    """Writes a model with a tokenizer trained on the texts of `studies`."""
    texts = [t for s in studies for t in (reporting_prompt(s).content.replace("<image>", " "), s.findings)]
    tokenizer_files.from_corpus(texts, 400, directory)
    vision = VisionSize(width=32, layers=1, heads=2, patch_size=14, image_size=28)
    language = LanguageSize(width=D_MODEL, mlp_width=64, layers=3, heads=2)
    cfg = model_config(vision, language, n_vocabulary=400)
    files.write_json(directory / "config.json", to_hf_dict(cfg))
    files.write_json(directory / "preprocessor_config.json", PREPROCESSOR)
    store.save(directory, maira2.init(cfg, jax.random.key(3)))

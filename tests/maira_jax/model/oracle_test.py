"""The Flax model against oracles that run as programs of their own: transformers 4.51.3, and the real widths."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from maira_jax.checkpoint import convert
from maira_jax.checkpoint.layout import entries
from maira_jax.generation.decode import generate
from maira_jax.model.config import Maira2Config, TextConfig, VisionConfig, to_hf_dict
from maira_jax.run import files
from tests.helpers.paths import ROOT
from tests.helpers.tiny_model import CFG, all_sites, batch, forward, make, worst

ORACLE = Path(os.environ.get("MAIRA_ORACLE_VENV", ROOT / ".venv-oracle"))
STEPS = 64
# MAIRA-2's widths, one layer each.
WIDE = Maira2Config(
    VisionConfig(
        hidden_size=768, num_hidden_layers=1, num_attention_heads=12, intermediate_size=3072, patch_size=14,
        image_size=518, layer_norm_eps=1e-6,
    ),
    TextConfig(
        vocab_size=32207, hidden_size=4096, intermediate_size=11008, num_hidden_layers=1, num_attention_heads=32,
        num_key_value_heads=32, head_dim=128, rms_norm_eps=1e-5, rope_theta=10000.0, rope_factor=1.5,
    ),
    image_token_id=32204,
    projector_n_layers=4,
)  # fmt: skip


def ask(command: list[str], directory: Path, cases: dict[str, tuple]) -> dict[str, np.ndarray]:
    """What an oracle's program answers for the checkpoint in `directory`. cases: (tokens, mask, flat pixels)."""
    inputs, outputs = directory / "inputs.npz", directory / "outputs.npz"
    named = {name: dict(zip(("tokens", "mask", "pixels"), case, strict=True)) for name, case in cases.items()}
    np.savez(inputs, **{f"{name}/{key}": value for name, case in named.items() for key, value in case.items()})
    subprocess.run([*command, str(directory), str(inputs), str(outputs), str(STEPS)], cwd=ROOT, check=True)
    with np.load(outputs) as answers:
        return dict(answers)


def in_4_51() -> list[str]:
    python = ORACLE / "bin" / "python"
    if not python.is_file():
        pytest.skip(f"needs transformers 4.51.3 in {ORACLE}: tests/helpers/oracle_4_51/build.sh makes it")
    return [str(python), "-m", "tests.helpers.oracle_4_51.reference"]


def compare(params, cfg, images, case, pixels, theirs: dict[str, np.ndarray]) -> None:
    """Every site within 1e-5 of its largest value, logits within 1e-4, the same greedy tokens."""
    tokens, mask, _ = case
    out = forward(params, cfg, tokens, mask, pixels, read=all_sites(cfg))
    found = worst(out.sites, theirs, images, mask)
    difference = np.abs(np.asarray(out.logits) - theirs["logits"])[mask].max()
    print(f"{images}: sites {found}, logits {difference:.1e} of {np.abs(theirs['logits'][mask]).max():.1f}")
    assert max(found.values()) < 1e-5
    assert difference < 1e-4
    ours, _ = generate(params, cfg, tokens, mask, pixels, max_new_tokens=STEPS, eos_id=-1)
    np.testing.assert_array_equal(ours, theirs["greedy"])


def of_case(answers: dict[str, np.ndarray], case: str) -> dict[str, np.ndarray]:
    return {key.split("/", 1)[1]: value for key, value in answers.items() if key.startswith(f"{case}/")}


def test_equals_transformers_4_51(tmp_path):
    command = in_4_51()
    params, _ = make(tmp_path, CFG)
    batches = {"".join(map(str, images)): (images, *batch(images)) for images in [(1, 1), (2, 1, 3)]}
    cases = {name: (tokens, mask, flat) for name, (_, tokens, mask, _, flat) in batches.items()}
    answers = ask(command, tmp_path, cases)
    for name, (images, _, _, pixels, _) in batches.items():
        compare(params, CFG, images, cases[name], pixels, of_case(answers, name))


def write_random(directory: Path, cfg: Maira2Config) -> None:
    """A checkpoint of random weights, a tensor at a time: it is not held in memory."""
    table, header, end = entries(cfg), {}, 0
    for entry in table:
        size = 4 * int(np.prod(entry.shape))
        header[entry.name] = {"dtype": "F32", "shape": list(entry.shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    rng = np.random.default_rng(0)
    with open(directory / "model.safetensors", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for entry in table:
            scale = "norm" in entry.name and entry.name.endswith("weight") or "lambda1" in entry.name
            std = entry.shape[1] ** -0.5 if len(entry.shape) == 2 and "embed" not in entry.name else 0.2
            file.write((rng.standard_normal(entry.shape, np.float32) * np.float32(std) + np.float32(scale)).tobytes())
    files.write_json(directory / "config.json", to_hf_dict(cfg))


@pytest.mark.skipif("MAIRA_WIDE_PARITY" not in os.environ, reason="takes minutes and 6 GB: set MAIRA_WIDE_PARITY=1")
@pytest.mark.parametrize("version", ["4.51", "5"])
def test_real_widths_equal_transformers(tmp_path, version):
    command = in_4_51() if version == "4.51" else [sys.executable, "-m", "tests.helpers.torch_oracle"]
    write_random(tmp_path, WIDE)
    rng = np.random.default_rng(1)
    patches, length = WIDE.patches_per_image, 1400
    tokens = rng.integers(3, 32000, (2, length)).astype(np.int32)
    mask = np.ones(tokens.shape, bool)
    mask[1, -9:] = False
    tokens[1, -9:] = 0
    tokens[:, 14 : 14 + patches] = WIDE.image_token_id
    pixels = rng.normal(size=(2, 1, 518, 518, 3)).astype(np.float32)
    case = tokens, mask, pixels[:, 0]
    theirs = of_case(ask(command, tmp_path, {"wide": case}), "wide")
    compare(convert.to_flax(tmp_path, WIDE, np.dtype(np.float32)), WIDE, (1, 1), case, pixels, theirs)

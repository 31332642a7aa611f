"""The model's programs on the device against the processor's in float32: passes, generation, steering and harvest.

The rows are longer than 1,024 tokens, the heads are of MAIRA-2's sizes, and two queries share a key-value head.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maira_jax.generation.decode import Sampling, generate, row_keys
from maira_jax.model import maira2
from maira_jax.model.config import Maira2Config, TextConfig, VisionConfig
from maira_jax.model.int8 import Int8Kernel, input_axis
from maira_jax.model.sites import Site
from sae.activations.harvest import kept_activations
from steer.methods.intervention import FeatureClamp, Intervention
from steer.program import decode as sweep
from steer.program.edit import SteeringEdits
from tests.helpers.on_device import run_on
from tests.helpers.random_params import random_params, relative
from tests.helpers.sae import random_sae

pytestmark = pytest.mark.gpu

CFG = Maira2Config(
    VisionConfig(
        hidden_size=128, num_hidden_layers=2, num_attention_heads=2, intermediate_size=256, patch_size=14,
        image_size=462, layer_norm_eps=1e-6,
    ),
    TextConfig(
        vocab_size=500, hidden_size=256, intermediate_size=512, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=128, rms_norm_eps=1e-5, rope_theta=10000.0, rope_factor=1.5,
    ),
    image_token_id=499,
    projector_n_layers=4,
)  # fmt: skip
LENGTH, NEW = 1170, 24
SITE = Site.parse("language.1.resid_post", CFG)
# At positions beyond a thousand the angles of two devices differ by 1e-4, as their power functions round; factors of
# 10 bits, which GPUs multiply where they are not told otherwise, give errors of 1e-3.
EXACT = 1e-4


@pytest.fixture(scope="module")
def params():
    return random_params(CFG)


@pytest.fixture(scope="module")
def prompts() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens, mask and pixels of two rows, each with an image; the second is shorter."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(3, 490, (2, LENGTH)).astype(np.int32)
    tokens[:, 2 : 2 + CFG.patches_per_image] = CFG.image_token_id
    mask = np.arange(LENGTH) < np.array([[LENGTH], [LENGTH - 23]])
    pixels = rng.normal(size=(2, 1, 462, 462, 3)).astype(np.float32)
    return np.where(mask, tokens, 0), mask, pixels


def cast(params, dtype):
    return jax.tree.map(lambda leaf: leaf.astype(dtype), params)


def with_int8(params):
    """The parameters with int8 weights, and in float32 what these stand for."""

    def weights(path: tuple, leaf: np.ndarray):
        axis = input_axis(tuple(key.key for key in path))
        return leaf if axis is None else jax.device_get(Int8Kernel.of(jnp.asarray(leaf), axis))

    def meant(path: tuple, leaf: np.ndarray) -> np.ndarray:
        axis = input_axis(tuple(key.key for key in path))
        if axis is None:
            return leaf
        kernel = Int8Kernel.of(jnp.asarray(leaf), axis)
        return np.asarray(kernel.values * jnp.expand_dims(kernel.scale, axis))

    return (jax.tree_util.tree_map_with_path(each, params) for each in (weights, meant))


def logits_of(params, prompts, written: np.ndarray) -> np.ndarray:
    """The logits from which each of the written tokens was chosen, by a pass over the whole row. [rows, NEW, vocab]"""
    tokens, mask, pixels = prompts
    ends = mask.sum(1)
    whole = np.zeros((len(tokens), LENGTH + NEW), np.int32)
    for row, end in enumerate(ends):
        whole[row, : end + NEW] = np.concatenate([tokens[row, :end], written[row]])
    seen = np.arange(LENGTH + NEW) < ends[:, None] + NEW
    logits = jax.jit(lambda *given: maira2.forward(given[0], CFG, *given[1:]).logits)(params, whole, seen, pixels)
    return np.stack([np.asarray(logits)[row, end - 1 : end - 1 + NEW] for row, end in enumerate(ends)])


def written_by(device: jax.Device, params, prompts, temperature: float = 0.0) -> np.ndarray:
    """The tokens of both rows, the likeliest or drawn. int32 [2, NEW]"""

    def write(*given):
        sampling = Sampling(row_keys(["first", "second"], 0), jnp.float32(temperature), jnp.float32(1))
        return generate(given[0], CFG, *given[1:], max_new_tokens=NEW, eos_id=-1, sampling=sampling)[0]

    return run_on(device, write, params, *prompts)


def test_a_pass_in_float32_gives_the_same_activations_and_logits(device, host, at_most, params, prompts):
    layers = CFG.vision.num_hidden_layers, CFG.text.num_hidden_layers
    names = [f"vision.{layer}.resid_post" for layer in range(layers[0])] + ["vision.output", "projector.3"]
    names += ["language.embed", *(f"language.{layer}.resid_post" for layer in range(layers[1]))]
    read = tuple(Site.parse(name, CFG) for name in names)
    program = jax.jit(lambda *given: maira2.forward(given[0], CFG, *given[1:], read=read))
    found, expected = (run_on(each, program, params, *prompts) for each in (device, host))
    mask = prompts[1]
    for name in names:
        ours, theirs = (np.asarray(each.sites[name]) for each in (found, expected))
        kept = (ours[mask], theirs[mask]) if name.startswith("language") else (ours, theirs)
        at_most(relative(*kept), EXACT if name.startswith("language") else 1e-5, name)
    at_most(relative(found.logits[mask], np.asarray(expected.logits)[mask]), EXACT, "logits")


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_tokens_in_float32_are_those_of_the_processor(device, host, params, prompts, temperature):
    found, expected = (written_by(each, params, prompts, temperature) for each in (device, host))
    np.testing.assert_array_equal(found, expected)
    assert not temperature or len(np.unique(expected)) > NEW / 2  # not one token again and again


@pytest.mark.parametrize("weights", ["full", "int8"])
def test_greedy_tokens_in_bfloat16_are_nearly_the_likeliest(device, host, at_most, params, prompts, weights):
    """By how much the logit of a chosen token is below the largest one, in the standard deviation of logits."""
    kept = cast(params, jnp.bfloat16)
    meant = params
    if weights == "int8":
        given, meant = with_int8(params)
        kept = jax.tree.map(
            lambda leaf: leaf if isinstance(leaf, Int8Kernel) else leaf.astype(jnp.bfloat16),
            given,
            is_leaf=lambda leaf: isinstance(leaf, Int8Kernel),
        )
    written = written_by(device, kept, prompts)
    logits = run_on(host, lambda given: logits_of(given, prompts, written), meant)
    chosen = np.take_along_axis(logits, written[..., None], axis=-1)[..., 0]
    at_most(float(((logits.max(-1) - chosen) / logits.std()).max()), 0.25, "largest")
    at_most(float((logits.max(-1) != chosen).mean()), 0.25, "share of other tokens")


def test_greedy_tokens_of_int8_weights_in_float32_are_those_of_the_processor(device, host, params, prompts):
    kept, _ = with_int8(params)
    np.testing.assert_array_equal(*(written_by(each, kept, prompts) for each in (device, host)))


def steered(device: jax.Device, params, prompts, edited: bool) -> tuple[np.ndarray, np.ndarray]:
    """Tokens of a sweep of five rows a study, three at a time, and whether their logits were finite."""
    tokens, mask, pixels = prompts
    d, rng = CFG.text.hidden_size, np.random.default_rng(1)
    sae = random_sae(rng.normal(size=(40, d)).astype(np.float32), (32,), 4, 0.1)
    vector = Intervention.adding(rng.normal(size=d).astype(np.float32), 20.0)
    clamp = Intervention.setting(FeatureClamp.of_features(sae, {3: 40.0, 8: 0.0}), 1.0)
    ways, strengths = [vector, vector, clamp, clamp, vector], [0.0, 1.0, 1.0, -1.0, -2.0]
    shape = sweep.SweepShape.of(SITE, edited, slots=3, max_new_tokens=NEW, eos_id=7)
    with jax.default_device(device):
        params = jax.device_put(maira2.unstacked(params), device)
        where = mask & edited & (np.arange(LENGTH) > CFG.patches_per_image)
        read = sweep.prefill(params, CFG, shape, *jax.device_put((tokens, mask, pixels, where), device))
        edits = SteeringEdits.of(ways, strengths, [SITE] * len(ways))
        rows = sweep.SteeredRows.of(edits, True, np.array([5, 4]))
        written, _, finite = sweep.write_rows(params, CFG, shape, read, rows)
    return written, finite


@pytest.mark.parametrize("edited", [False, True], ids=["generated tokens", "prompt and generated tokens"])
def test_steered_rows_in_float32_are_those_of_the_processor(device, host, params, prompts, edited):
    (found, _), (expected, _) = (steered(each, params, prompts, edited) for each in (device, host))
    np.testing.assert_array_equal(found, expected)
    assert len({tuple(row) for row in expected[0]}) > 3  # the edits change what is written


def test_steered_rows_in_bfloat16_begin_as_in_float32(device, host, at_most, params, prompts):
    (found, finite), (expected, _) = (
        steered(*each, prompts, True) for each in ((device, cast(params, jnp.bfloat16)), (host, params))
    )
    assert finite.all()
    at_most(float((found[:, :4, 0] != expected[:, :4, 0]).mean()), 0.25, "share of other first tokens")


@pytest.mark.parametrize(("dtype", "bound"), [("float32", EXACT), ("bfloat16", 4e-2)])
def test_harvested_activations(device, host, at_most, params, prompts, dtype, bound):
    """Relative to the length of each token's activation; the rows share an image."""
    tokens, mask, pixels = prompts
    kept = np.stack([np.flatnonzero(mask.reshape(-1))[-1500::7]]).astype(np.int32)  # [1, capacity]
    given = (tokens, mask, pixels[0], np.zeros((2, 1), np.int32), kept)

    def harvested(params, *given):
        return kept_activations(params, CFG, SITE, dtype, *given)

    found = run_on(device, harvested, cast(params, jnp.dtype(dtype)), *given).astype(np.float64)
    expected = run_on(host, lambda *all: kept_activations(all[0], CFG, SITE, "float32", *all[1:]), params, *given)
    errors = np.linalg.norm(found - expected, axis=-1) / np.linalg.norm(expected, axis=-1)
    at_most(float(errors.max()), bound)

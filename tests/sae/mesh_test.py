"""Training on eight forced host devices equals training on one, and moves no matrix of features."""

import re

import jax.numpy as jnp
import numpy as np
import pytest

from sae import mesh
from tests.helpers.commands import printed_by
from tests.helpers.train_on_mesh import BATCH, MESHES, STEPS, D, F

PROGRAM = "tests.helpers.train_on_mesh"


@pytest.fixture(scope="module")
def results():
    return printed_by(PROGRAM)


@pytest.mark.parametrize("shape", MESHES[1:], ids=str)
def test_equal_to_one_device(results, shape):
    one, many = results[str((1, 1))], results[str(shape)]
    assert max(one["metrics"]["dead"]) > 0
    for name in ("loss", "threshold", "gradient_norm"):
        np.testing.assert_allclose(many["metrics"][name], one["metrics"][name], rtol=1e-5, err_msg=name)
    # Adam divides by the gradient's own size, so a feature with next to no gradient follows rounding; hence the norm.
    for name, value in one["params"].items():
        difference = np.linalg.norm(np.subtract(many["params"][name], value))
        assert difference < 1e-4 * np.linalg.norm(value), name
    np.testing.assert_array_equal(many["tokens_since_fired"], one["tokens_since_fired"])


def test_sums_over_devices_in_bfloat16_differ_less_than_factors_in_it(results):
    one, many, float32 = results["(1, 1) bfloat16"], results["(8, 1) bfloat16"], results["(1, 1)"]["params"]
    for name in ("W_enc", "W_dec"):
        of_sums = np.linalg.norm(np.subtract(many[name], one[name]))
        of_factors = np.linalg.norm(np.subtract(one[name], float32[name]))
        assert 0 < of_sums < of_factors, (name, of_sums, of_factors)


def moved(line: str) -> list[tuple[str, int]]:
    """The dtype and the size of each array that a line of an optimised program moves between devices."""
    arrays = re.findall(r"([a-z]+\d*)\[([\d,]*)\]", re.split(r" all-(?:reduce|gather)(?:-start)?\(", line)[0])
    return [(dtype, int(np.prod([int(n) for n in dims.split(",") if n] or [1]))) for dtype, dims in arrays]


@pytest.mark.parametrize("shape", MESHES[1:], ids=str)
def test_collectives(results, shape):
    lines = results[str(shape)]["collectives"]
    data, feature = shape
    # The largest things that may travel: a matrix, or the reconstructions of one device's tokens.
    largest = max(F // feature * D, BATCH // data * D)
    for line in lines:
        assert re.search(r"all-(reduce|gather)(-start)?\(", line), line
        assert all(size <= largest for _, size in moved(line)), line
    counting = [line for line in lines if "select/while/body" in line]
    assert [moved(line) for line in counting] == [[("s32", 7)]]
    # A matrix is gathered where the first step of a call begins, and once more in each step.
    gathered = [line for line in lines if " all-gather" in line and max(n for _, n in moved(line)) == F // feature * D]
    assert len(gathered) == (4 if data > 1 else 0), gathered
    always = [line for line in lines if not re.search("cond/branch|gradients/while", line)]  # without dead features
    assert len(always) <= 26


@pytest.mark.parametrize("moves", ["from (1, 1) to (4, 2)", "from (4, 2) to (1, 1)"])
def test_a_checkpoint_resumes_on_another_mesh(results, moves):
    one, moved = results[str((1, 1))]["metrics"], results[moves]["metrics"]
    for name in ("loss", "threshold"):
        np.testing.assert_allclose(moved[name], one[name][STEPS // 2 :], rtol=1e-5, err_msg=name)


def test_one_device_needs_no_collective(results):
    assert not results[str((1, 1))]["collectives"]


def test_stripes():
    features = jnp.arange(12)
    striped = mesh.stripe(features, 4)
    # Device i holds i, i + 4, i + 8, so the first four features are spread over all devices.
    np.testing.assert_array_equal(striped.reshape(4, 3), [[0, 4, 8], [1, 5, 9], [2, 6, 10], [3, 7, 11]])
    np.testing.assert_array_equal(mesh.unstripe(striped, 4), features)
    matrix = jnp.arange(24).reshape(2, 12)
    np.testing.assert_array_equal(mesh.stripe(matrix, 4, axis=1)[1], striped + 12)

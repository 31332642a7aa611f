"""Evaluation and calibration on eight forced host devices equal those on one, and move no matrix of features."""

import numpy as np
import pytest

from tests.helpers.commands import printed_by
from tests.helpers.evaluate_on_mesh import GROUPS, MESHES, D, F


@pytest.fixture(scope="module")
def results():
    return printed_by("tests.helpers.evaluate_on_mesh")


@pytest.mark.parametrize("shape", MESHES[1:], ids=str)
def test_equal_to_one_device(results, shape):
    one, many = results[str((1, 1))], results[str(shape)]
    for name in ("threshold", "threshold_of_parts"):
        np.testing.assert_allclose(many[name], one[name], rtol=1e-6, err_msg=name)
    for name in ("measured", "whole"):
        for metric in ("fvu", "explained_variance", "cosine", "l0"):
            np.testing.assert_allclose(many[name][metric], one[name][metric], rtol=1e-6, err_msg=metric)
        for ours, theirs in zip(many[name]["prefixes"], one[name]["prefixes"], strict=True):
            np.testing.assert_allclose(list(ours.values()), list(theirs.values()), rtol=1e-6)
    np.testing.assert_allclose(many["density"], one["density"], atol=1e-9)


@pytest.mark.parametrize("shape", MESHES, ids=str)
def test_batches_do_not_change_the_result(results, shape):
    found = results[str(shape)]
    assert found["threshold"] == found["threshold_of_parts"]
    np.testing.assert_allclose(found["measured"]["fvu"], found["whole"]["fvu"], rtol=1e-6)


@pytest.mark.parametrize("shape", MESHES, ids=str)
def test_collectives(results, shape):
    # The most that may travel are the reconstructions of one device's tokens, where features are divided.
    data, feature = shape
    moved, tokens = results[str(shape)]["collectives"], 5120 // data
    assert moved["sums"] <= max(len(GROUPS) * tokens * D if feature > 1 else 0, F if data > 1 else 0)
    assert moved["of_batch"] <= (tokens if feature > 1 else 1)
    assert moved["counts"] <= 63

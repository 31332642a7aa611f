"""The directions of each control, on planted features."""

import numpy as np
import pytest

from interp.controls import CONTROLS
from interp.controls.control import bases
from interp.exemplars.corpus import Corpus
from sae.saved import load_sae
from tests.helpers.interp_run import make_workdir


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_workdir(tmp_path_factory.mktemp("controls"), 60)


def test_controls_are_as_many_as_features_or_as_they_are(run):
    sae, corpus = load_sae(run / "sae"), Corpus.open(run, 32)
    found = bases(sae, corpus.store, 0)
    assert set(found) == set(CONTROLS.names()) - {"shuffled activations"}
    assert found["random directions"].shape == found["shuffled weights"].shape == (sae.d_model, sae.n_features)
    np.testing.assert_array_equal(found["raw dimensions"], np.eye(sae.d_model))
    components = found["principal components"]
    np.testing.assert_allclose(components.T @ components, np.eye(components.shape[1]), atol=1e-5)
    x = corpus.store.read(0, corpus.store.n_tokens)[~corpus.held_out[corpus.store.tokens.study]]
    covariance = components.T @ np.cov(x.T) @ components
    assert np.abs(covariance - np.diag(np.diag(covariance))).max() < 1e-3 * covariance[0, 0]
    assert (np.diff(np.diag(covariance)) <= 0).all()
    encoder = np.asarray(sae.params["W_enc"])
    np.testing.assert_allclose(np.sort(found["shuffled weights"], axis=0), np.sort(encoder, axis=0))
    assert not np.allclose(found["shuffled weights"], encoder)

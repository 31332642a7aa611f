"""The directions of each control, on planted features."""

from types import SimpleNamespace

import numpy as np
import pytest

from interp.controls import CONTROLS, matched
from interp.controls.control import bases, train_sample
from interp.exemplars.corpus import Corpus
from sae.saved import load_sae
from tests.helpers.interp_run import make_workdir


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_workdir(tmp_path_factory.mktemp("controls"), 60)


def test_the_directions_of_controls_are_found_again_by_what_is_stored_of_them(run):
    sae, corpus = load_sae(run / "sae"), Corpus.open(run, 32)
    n = sae.n_features
    train = SimpleNamespace(n_tokens=np.arange(2 * n).reshape(n, 2), total_tokens=100 * n)
    for made in matched.build(sae, corpus.store, train, np.arange(n), 6, 0):
        for kind in dict.fromkeys(made.kind):
            own = [i for i, name in enumerate(made.kind) if name == kind]
            known = made.matched[own].tolist(), [made.direction[i] for i in own]
            found = matched.directions(kind, sae, train_sample(corpus.store, 0), *known, 0)
            np.testing.assert_array_equal(found, np.asarray(made.sae.params["W_enc"])[:, own])


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

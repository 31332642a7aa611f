"""What labelled studies say: means, differences and a probe, on activations with a known effect."""

import json

import numpy as np
import pyarrow as pa
import pytest

from maira_jax.inputs.tokens import Kind
from sae.activations.store import ActivationStore, StoreLayout, StoreWriter
from sae.activations.token_rows import TokenRows
from steer.methods.difference_of_means import difference
from steer.methods.probe import probe
from steer.methods.study_means import StudyMeans

N_STUDIES, N_TOKENS, WIDTH = 12, 6, 32


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ActivationStore:
    """Half of the studies are for training; of those every second one has cardiomegaly, and none oedema."""
    directory, rng = tmp_path_factory.mktemp("activations"), np.random.default_rng(0)
    n = N_STUDIES * N_TOKENS
    tokens = TokenRows(
        study=np.repeat(np.arange(N_STUDIES), N_TOKENS).astype(np.int32),
        position=np.tile(np.arange(N_TOKENS), N_STUDIES).astype(np.int32),
        token_id=np.full(n, 7, np.int32),
        kind=np.tile([Kind.INDICATION, *[Kind.FINDINGS] * (N_TOKENS - 1)], N_STUDIES).astype(np.int8),
    )
    studies = {
        "study_id": [f"s{i}" for i in range(N_STUDIES)],
        "patient_id": [f"p{i}" for i in range(N_STUDIES)],
        "split": ["train"] * 6 + ["held_out"] * 6,
        "labels": [json.dumps({"cardiomegaly": i % 2 == 0, "oedema": False}) for i in range(N_STUDIES)],
        "start": np.arange(N_STUDIES) * N_TOKENS,
        "stop": (np.arange(N_STUDIES) + 1) * N_TOKENS,
    }
    layout = StoreLayout(n, WIDTH, "float32", 128, 64)
    writer = StoreWriter(directory, layout, tokens, pa.table(studies), {"site": "language.1.resid_post"})
    writer.write(0, rng.normal(size=(n, WIDTH)).astype(np.float32))
    return ActivationStore.open(directory)


def test_means_and_directions_of_training_studies(store: ActivationStore) -> None:
    means = StudyMeans.measure(store, lambda kinds: kinds == Kind.FINDINGS)
    x = store.read(0, 6 * N_TOKENS).reshape(6, N_TOKENS, WIDTH)[:, 1:]  # training studies, findings tokens
    groups = means.groups("cardiomegaly")
    assert groups is not None
    np.testing.assert_allclose(difference(*groups), x[::2].mean((0, 1)) - x[1::2].mean((0, 1)), atol=1e-6)
    np.testing.assert_allclose(means.residual_norm, np.linalg.norm(x, axis=-1).mean(), rtol=1e-6)
    centred = means.means[:6] - means.means[:6].mean(axis=0)
    assert (np.sign(centred @ probe(*groups)) == [1, -1] * 3).all()


def test_no_groups_without_both_classes(store: ActivationStore) -> None:
    assert StudyMeans.measure(store, lambda kinds: kinds == Kind.FINDINGS).groups("oedema") is None
    nowhere = StudyMeans.measure(store, lambda kinds: kinds == Kind.EOS)
    assert nowhere.groups("cardiomegaly") is None and nowhere.residual_norm == 0

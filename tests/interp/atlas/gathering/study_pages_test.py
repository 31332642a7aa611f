"""A study's page: its text, what is active on each token, its images, and studies like it."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from interp.atlas.gathering.study_pages import RowEncoder
from interp.medsae.similar import StudyCodes, nearest, shared_features
from maira_jax.studies.readers import phantom
from sae.activations.store import ActivationStore
from sae.saved import load_sae


def test_a_study_has_its_text_and_the_features_of_every_token(full):
    store, sae = ActivationStore.open(full.workdir / "activations"), load_sae(full.workdir / "sae")
    largest, labels = np.array(full.atlas.chunk("list")["max_activation"]), full.atlas.chunk("labels")
    for number in (0, 4):
        row = store.studies.slice(number, 1).to_pylist()[0]
        study = full.atlas.study(row["study_id"])
        (truth,) = phantom.studies(number, number + 1, seed=0, size=8)
        findings = full.atlas.head["sections"].index("findings")
        words = ["".join(study["tokens"][a:b]) for section, a, b in study["sentences"] if section == findings]
        assert " ".join("".join(words).split()) == " ".join(truth.findings.split())
        f = np.asarray(sae.encode(jnp.asarray(store.read(row["start"], row["stop"]))))
        percent = np.ceil(100 * f / np.where(largest > 0, largest, np.inf) - 1e-3)
        wanted = {(i, j): percent[i, j] for i, j in zip(*np.nonzero(percent >= 5), strict=True)}
        found = {}
        for feature, share, *pairs in study["features"]:
            assert share == max(pairs[1::2])
            found |= {(place, feature): value for place, value in zip(pairs[::2], pairs[1::2], strict=True)}
        assert found.keys() == wanted.keys() and all(abs(found[key] - wanted[key]) <= 1 for key in found)
        assert [share for _, share, *_ in study["features"]] == sorted(
            (share for _, share, *_ in study["features"]), reverse=True
        )
        assert study["labels"] == [name for name, value in truth.labels.items() if value]
        assert study["labels"] == [labels["names"][n] for n in labels["present"][study["name"]]]
        images = len([image for image in (truth.frontal, truth.lateral, truth.prior_frontal) if image is not None])
        assert len(study["images"]) == images and all(first == -1 for _, first, _ in study["images"])


def test_similar_studies_are_those_of_the_codes(full):
    codes = StudyCodes.read(full.workdir / "similar")
    for name, *_ in full.atlas.chunk("studies")[:5]:
        own, found = codes.row(name), full.atlas.study(name)["similar"]
        rows, cosines = nearest(codes, own, 6)
        assert [other for other, *_ in found] == codes.study_id[rows].tolist()
        np.testing.assert_allclose([cosine for _, cosine, *_ in found], cosines, atol=1e-3)
        for other, _, shared, _ in found:
            assert shared[0][0] == shared_features(codes, own, codes.row(other))[0][0]


def test_a_study_in_which_nothing_is_active_has_no_features(run_dir):
    sae = dataclasses.replace(load_sae(run_dir / "sae"), threshold=1e9)
    rows = np.ones((300, sae.d_model), np.float32)
    assert RowEncoder(sae, np.ones(sae.n_features, np.float32)).strongest(rows) == []

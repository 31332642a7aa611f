"""Which features the method "class_means" sets, and to what, on studies whose features are known."""

import jax
import numpy as np
import pytest

from interp.features.concepts import StudyLabels
from maira_jax.model.sites import Site
from sae import autoencoder
from sae.autoencoder import Sae
from steer.methods import MethodInputs
from steer.methods.class_means import StudyFeatures
from steer.methods.direction import make_directions
from steer.methods.intervention import Intervention
from steer.program.edit import SteeringEdits
from steer.selection.target import Target
from tests.helpers.tiny_model import CFG

EFFUSION, SMALL, LARGE, CLEAR, HEART, LINE = range(6)
N, WIDTH = 1200, 8


@pytest.fixture(scope="module")
def study_features() -> StudyFeatures:
    """Every feature is active at 10 where it should be: an effusion, small or large ones, none, the heart, a line."""
    rng = np.random.default_rng(0)
    size = rng.choice(3, N, p=[0.6, 0.2, 0.2])
    heart, line = rng.random(N) < 0.3, rng.random(N) < 0.02
    active = np.stack([size > 0, size == 1, size == 2, size == 0, heart, line], axis=1)
    labels = StudyLabels(
        ("effusion", "large", "never"), np.stack([size > 0, size == 2, size > 2], 1), np.ones((N, 3), bool)
    )
    faint = rng.random((N, 6)).astype(np.float32)  # of something else
    return StudyFeatures(np.where(active, np.float32(10), faint), labels)


def test_what_differs_is_set_and_nothing_else(study_features: StudyFeatures) -> None:
    there, gone = study_features.class_means("effusion", EFFUSION)
    assert there.keys() == gone.keys() == {EFFUSION, SMALL, LARGE, CLEAR}
    assert there[EFFUSION] == pytest.approx(10) and there[SMALL] + there[LARGE] == pytest.approx(10.5, abs=0.2)
    assert gone[CLEAR] == pytest.approx(10) and max(gone[f] for f in (EFFUSION, SMALL, LARGE)) < 0.6
    there, gone = study_features.class_means("large", LARGE)
    assert there.keys() == {EFFUSION, SMALL, LARGE, CLEAR} and there[SMALL] < 0.6
    assert gone[EFFUSION] == pytest.approx(2.9, abs=0.5), "without a large one there may be a small one"


def test_the_feature_of_a_concept_is_always_set(study_features: StudyFeatures) -> None:
    assert study_features.class_means("effusion", HEART)[0][HEART] == pytest.approx(3.35, abs=0.5)


def test_no_studies_no_class_means(study_features: StudyFeatures) -> None:
    assert study_features.class_means("never", LARGE) is None
    assert study_features.class_means("unheard of", LARGE) is None


def test_the_method_sets_them(study_features: StudyFeatures) -> None:
    sae = Sae(autoencoder.init(jax.random.key(0), WIDTH, 6, np.zeros(WIDTH, np.float32)), 0.1, 2, (6,))
    target = Target("effusion", EFFUSION, 20.0)
    inputs = MethodInputs(sae, "max_activation", 0, {StudyFeatures: study_features})
    (direction,) = make_directions([target], ("class_means",), inputs)
    assert direction.strengths((3.0, 5.0)) == (-1.0, 1.0)
    nothing = Intervention(np.zeros(WIDTH, np.float32), 0.0)
    interventions = [direction.intervention, direction.intervention, nothing]
    edits = SteeringEdits.of(interventions, [1.0, -1.0, 0.0], [Site.parse("language.embed", CFG)] * 3)
    made = edits.clamps
    for row, values in enumerate(study_features.class_means("effusion", EFFUSION)):
        n = len(values)
        np.testing.assert_allclose(made.target[row, :n], list(values.values()), rtol=1e-6)
        np.testing.assert_array_equal(made.decoder_directions[row, :n], np.asarray(sae.params["W_dec"])[list(values)])
        np.testing.assert_array_equal(made.weight[row], np.arange(4) < n)
    assert not made.weight[2].any() and not np.asarray(edits.strength).any()

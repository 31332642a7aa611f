"""The directions that the built-in methods make of a target."""

import jax
import numpy as np
import pytest

from interp.features.concepts import StudyLabels
from sae import autoencoder
from sae.autoencoder import Sae
from steer.methods import METHODS, MethodInputs
from steer.methods.direction import Direction, make_directions
from steer.methods.study_means import StudyMeans
from steer.selection.target import Target

WIDTH, SEED = 8, 3
METHODS_WITHOUT_STUDIES = ("add", "add_several", "clamp", "ablate", "project", "random", "prompt")


@pytest.fixture(scope="module")
def inputs() -> MethodInputs:
    sae = Sae(autoencoder.init(jax.random.key(0), WIDTH, 6, np.zeros(WIDTH, np.float32)), 0.1, 2, (6,))
    return MethodInputs(sae, "max_activation", SEED, {})


def made(target: Target, inputs: MethodInputs) -> dict[str, Direction]:
    return {direction.key: direction for direction in make_directions([target], METHODS_WITHOUT_STUDIES, inputs)}


def test_all_directions_of_a_target_share_its_unit(inputs: MethodInputs) -> None:
    found = made(Target("large effusion", 4, 20.0, others=((1, 5.0),)), inputs)
    numbered = [f"{name}-4" for name in METHODS_WITHOUT_STUDIES if name != "prompt"]
    assert list(found) == [*numbered, "prompt-large-effusion"]
    assert {direction.intervention.unit_size for direction in found.values()} == {20.0, 0.0}  # a sentence has none
    w_dec = np.asarray(inputs.sae.params["W_dec"])
    several = 20.0 * w_dec[4] + 5.0 * w_dec[1]
    for name, vector in (("add-4", w_dec[4]), ("add_several-4", several)):
        np.testing.assert_allclose(found[name].intervention.vector, vector / np.linalg.norm(vector), rtol=1e-5)
    assert found["clamp-4"].intervention.clamp.value == [20.0]
    assert found["ablate-4"].intervention.clamp.value == [0.0]


def test_random_directions_depend_on_the_seed_and_the_feature_alone(inputs: MethodInputs) -> None:
    vector = np.random.default_rng([SEED, 4]).standard_normal(WIDTH)
    found = made(Target("", 4, 20.0), inputs)["random-4"].intervention.vector
    np.testing.assert_allclose(found, vector / np.linalg.norm(vector), rtol=1e-6)


def test_without_a_concept_or_other_features_there_are_fewer_directions(inputs: MethodInputs) -> None:
    assert set(made(Target("", 4, 20.0), inputs)) == {"add-4", "clamp-4", "ablate-4", "project-4", "random-4"}


def test_methods_with_strengths_of_their_own_ignore_those_of_the_sweep(inputs: MethodInputs) -> None:
    found = made(Target("effusion", 4, 20.0), inputs)
    assert found["add-4"].strengths((2.0, 3.0)) == (2.0, 3.0)
    assert found["ablate-4"].strengths((2.0, 3.0)) == (-1.0,)
    prompt = found["prompt-effusion"]
    assert prompt.strengths((2.0, 3.0)) == (-1.0, 1.0)
    assert prompt.intervention.sentences == {1.0: "There is effusion.", -1.0: "There is no effusion."}


def test_features_of_a_concept_share_what_knows_the_concept_alone(inputs: MethodInputs) -> None:
    targets = [Target("effusion", feature, 20.0) for feature in (4, 5)]
    found = make_directions(targets, ("add", "prompt"), inputs)
    assert [direction.key for direction in found] == ["add-4", "prompt-effusion", "add-5"]


def test_a_feature_of_two_concepts_has_a_direction_for_each(inputs: MethodInputs) -> None:
    """Its key does not depend on the other targets, so that a sweep can grow."""
    targets = [Target(concept, 4, 20.0, of_concept=True) for concept in ("effusion", "large effusion")]
    for chosen in (targets, targets[::-1]):
        found = {direction.key: direction.target.concept for direction in make_directions(chosen, ("add",), inputs)}
        assert found == {"add-4-effusion": "effusion", "add-4-large-effusion": "large effusion"}


def test_units(inputs: MethodInputs) -> None:
    means = StudyMeans(np.zeros((1, WIDTH), np.float32), StudyLabels.from_json(["{}"]), 7.0)
    for unit, size in (("max_activation", 20.0), ("residual_norm", 7.0), ("raw", 1.0)):
        given = MethodInputs(inputs.sae, unit, SEED, {StudyMeans: means})
        assert given.unit_size(20.0) == size


def test_methods_name_what_they_need() -> None:
    needing = {name for name in METHODS.names() if METHODS.get(name).statistics}
    assert {"class_means", "difference_of_means", "probe"} <= needing
    assert not needing & set(METHODS_WITHOUT_STUDIES)

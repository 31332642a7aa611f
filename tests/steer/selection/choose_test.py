"""Which features are chosen: by number, by explanation, or the best one of each concept."""

import numpy as np
import pytest

from maira_jax.errors import UserError
from steer.selection.catalogue import FeatureCatalogue
from steer.selection.choose import choose


def make_catalogue() -> FeatureCatalogue:
    explanations = {1: "an effusion", 2: "Effusion of any size", 3: "pneumothorax or oedema", 4: None}
    features = {
        number: {"feature": number, "explanation": text, "max_activation": float(number) if number != 4 else 0.0}
        for number, text in explanations.items()
    }
    rows = [
        ("oedema", 4, 0.9, [], []),
        ("effusion", 2, 0.8, [1, 3, 9], [0.75, 0.4, 0.8]),
        ("large effusion", 2, 0.7, [], []),
    ]
    names = ("concept", "feature", "f1", "runners_up", "runners_up_f1")
    return FeatureCatalogue(features, [dict(zip(names, row, strict=True)) for row in rows], "interp")


def test_features_by_number_come_first() -> None:
    found = choose(make_catalogue(), (3, 1), "effusion", (), 12)
    assert [target.feature for target in found] == [3, 1]
    assert [target.concept for target in found] == ["oedema", "effusion"], "the concept that the explanation names"

    found = choose(make_catalogue(), (3, 1, 2), "", (), 2)
    assert len(found) == 3, "all that are asked for"


def test_features_by_concept_and_explanation() -> None:
    catalogue = make_catalogue()
    assert [target.feature for target in choose(catalogue, (), "EFFUSION", (), 12)] == [2, 1]
    assert [target.feature for target in choose(catalogue, (), "effusion", (), 1)] == [2]
    assert [target.feature for target in choose(catalogue, (), "oedema", (), 12)] == [3], "4 is never active"
    denied = 'denied "large effusion" / "without effusion"'
    catalogue.features[5] = {"feature": 5, "explanation": denied, "max_activation": 50.0}
    catalogue.features[6] = {"feature": 6, "explanation": "no oedema, effusion", "max_activation": 9.0}
    assert [target.feature for target in choose(catalogue, (), "effusion", (), 12)] == [2, 6, 1], "5 only denies it"
    assert [target.feature for target in choose(catalogue, (), "denied", (), 12)] == [5]
    assert [target.feature for target in choose(catalogue, (), "without effusion", (), 12)] == [5]
    catalogue.features[1] |= {"concept": "small effusion", "concept_f1": 0.6}
    catalogue.features[6] |= {"concept": "oedema", "concept_f1": 0.9}
    assert [target.feature for target in choose(catalogue, (), "effusion", (), 12)] == [2, 1, 6], "1 detects one"
    assert str(choose(catalogue, (), "effusion", (), 1)[0]) == "feature 2 effusion (F1 0.80)"


def test_the_best_feature_of_each_concept_once_and_only_if_it_is_ever_active() -> None:
    (target,) = choose(make_catalogue(), (), "", (), 12)
    assert (target.feature, target.concept, target.f1) == (2, "effusion", 0.8)
    assert target.others == ((1, 1.0),), "as good, and known"


def test_concepts_by_name_each_for_itself() -> None:
    found = choose(make_catalogue(), (), "", ("large effusion", "effusion"), 1)
    assert [(target.feature, target.concept, target.f1) for target in found] == [
        (2, "large effusion", 0.7),
        (2, "effusion", 0.8),
    ], "not the concept that the feature detects best"
    assert [target.feature for target in choose(make_catalogue(), (3,), "", ("effusion",), 1)] == [3]
    assert [target.concept for target in choose(make_catalogue(), (), "", ("oedemas", "effusion"), 1)] == ["effusion"]
    with pytest.raises(UserError, match="none that interp has a feature for: choose from effusion, large effusion"):
        choose(make_catalogue(), (), "", ("oedemas",), 1)


def test_several_candidates_by_f1_or_by_a_score() -> None:
    found = choose(make_catalogue(), (), "", ("effusion",), 12, candidates=3)
    assert [(target.feature, target.concept, target.f1) for target in found] == [
        (2, "effusion", 0.8),
        (1, "effusion", 0.75),
        (3, "effusion", 0.4),
    ]
    asked = []

    def score(concepts):
        asked.extend(concepts)
        return {concept: np.array([0.0, 0.1, 0.5, 2.0, 1.0]) for concept in concepts}

    catalogue = make_catalogue()
    catalogue.features[0] = {"feature": 0, "explanation": None, "max_activation": 1.0}
    first, second = choose(catalogue, (), "", ("effusion",), 12, candidates=2, score=score)
    assert asked == ["effusion"] and (first.feature, first.score, first.f1) == (3, 2.0, 0.4)
    assert (second.feature, second.score, second.f1) == (4, 1.0, None)
    assert str(first) == "feature 3 effusion (F1 0.40, score 2.00)"
    assert choose(catalogue, (1,), "", (), 12, score=score)[0].score is None, "what is named is not scored"


@pytest.mark.parametrize(
    ("features", "match", "words"),
    [
        ((7,), "", "feature 7 .* numbered from 1 to 4"),
        ((), "(", "not a regular expression"),
        ((), "fracture", "matches no feature"),
    ],
)
def test_what_cannot_be_chosen_is_refused(features: tuple[int, ...], match: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        choose(make_catalogue(), features, match, (), 12)
    with pytest.raises(UserError, match="names no concept"):
        choose(FeatureCatalogue({}, [], "interp"), (), "", (), 12)

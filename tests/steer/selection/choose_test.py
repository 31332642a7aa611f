"""Which features are chosen: by number, by explanation, or the best one of each concept."""

import dataclasses
from typing import ClassVar

import numpy as np
import pytest

from maira_jax.errors import UserError
from maira_jax.model.sites import Site
from steer.selection.catalogue import FeatureCatalogue
from steer.selection.choose import SCHEMA, Selected, SelectSize
from steer.selection.choose import choose as choose_all
from steer.selection.rule import SELECTIONS, EditedModel, SelectionInputs, SelectionRule
from steer.selection.target import Target


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


def make_inputs(catalogue: FeatureCatalogue, n: int = 10) -> SelectionInputs:
    return SelectionInputs(catalogue, np.zeros((n, 2), np.float32), None, list, 2, lambda: None)  # type: ignore[arg-type]


def choose(catalogue, features, match, concepts, top, **size) -> list[Target]:
    """The features that are chosen by concept."""
    given = (catalogue, features, match, concepts, SelectSize(top, **size))
    return choose_all(*given, inputs=make_inputs(catalogue)).targets


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


@pytest.mark.parametrize("concept", ["effusion", "pneumothorax"])
def test_features_that_are_given_or_match_are_for_the_one_concept_that_is_named(concept: str) -> None:
    catalogue = make_catalogue()
    numbered = choose_all(catalogue, (3, 2), "", (concept,), SelectSize(1))
    assert [(target.feature, target.concept) for target in numbered.targets] == [(3, concept), (2, concept)]
    assert all(target.of_concept for target in numbered.targets), "reports of other concepts have other keys"
    matching = choose_all(catalogue, (), "effusion", (concept,), SelectSize(1))
    assert [(target.feature, target.concept) for target in matching.targets] == [(2, concept)]
    assert matching.targets[0].f1 == (0.8 if concept == "effusion" else None)
    assert (matching.n_asked_for, matching.scores) == (2, [])


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
    assert [target.concept for target in choose(make_catalogue(), (), "", ("oedemas", "effusion"), 1)] == ["effusion"]
    with pytest.raises(UserError, match="none that interp has a feature for: choose from effusion, large effusion"):
        choose(make_catalogue(), (), "", ("oedemas",), 1)


def test_several_candidates_by_f1_and_those_that_detect_nothing_better() -> None:
    catalogue = make_catalogue()
    catalogue.features[6] = {"feature": 6, "explanation": "", "max_activation": 1.0, "concept": "effusion"}
    catalogue.features[6] |= {"concept_f1": 0.6}
    found = choose(catalogue, (), "", ("effusion",), 12, candidates=4)
    assert [(target.feature, target.concept, target.f1) for target in found] == [
        (2, "effusion", 0.8),
        (1, "effusion", 0.75),
        (6, "effusion", 0.6),
        (3, "effusion", 0.4),
    ]


class FixedRule(SelectionRule):
    """Scores that are given."""

    asked: ClassVar[list] = []

    def scores(self, candidates, inputs):
        self.asked.append({concept: sorted(numbers) for concept, numbers in candidates.items()})
        values = np.array([9.0, 0.5, 0.1, 0.7, np.nan, 2.0, 1.0, 0.0, 0.0, 0.0])
        return {concept: values.copy() for concept in candidates}


@SELECTIONS.register("fixed_proposing")
class FixedProposingRule(FixedRule):
    proposes = True


SELECTIONS.register("fixed")(FixedRule)


def test_rules_score_what_others_propose_and_each_chooses() -> None:
    catalogue = make_catalogue()
    for number in (0, 5, 6):
        catalogue.features[number] = {"feature": number, "explanation": None, "max_activation": 1.0}
    size, inputs = SelectSize(12, candidates=1, pool=2), make_inputs(catalogue)
    FixedRule.asked.clear()
    found = choose_all(catalogue, (), "", ("effusion",), size, ("fixed",), inputs)
    assert FixedRule.asked == [{"effusion": [1, 2]}], "those that detect it best"
    assert [(target.feature, target.chosen_by) for target in found.targets] == [(1, (("fixed", 0.5),))]
    assert str(found.targets[0]) == "feature 1 effusion (F1 0.75, fixed 0.50)"
    rows = [("effusion", 1, "fixed", 0.5, 1, True), ("effusion", 2, "fixed", 0.1, 2, False)]
    assert found.scores == [dict(zip(SCHEMA.names, row, strict=True)) for row in rows]

    FixedRule.asked.clear()
    rules = ("fixed", "concept", "fixed_proposing")
    found = choose_all(catalogue, (), "", ("effusion",), size, rules, inputs)
    assert FixedRule.asked == [{"effusion": []}, {"effusion": [0, 1, 2, 5]}]
    assert [(target.feature, [rule for rule, _ in target.chosen_by], target.f1) for target in found.targets] == [
        (0, ["fixed", "fixed_proposing"], None),
        (2, ["concept"], 0.8),
    ]
    assert found.targets[1].others == ((1, 1.0),), "what is known of the best feature"
    by_concept = [row for row in found.scores if row["rule"] == "concept"]
    assert [(row["feature"], row["rank"], row["chosen"]) for row in by_concept] == [(2, 1, True), (1, 2, False)]
    assert choose_all(catalogue, (1,), "", (), size, rules, inputs) == Selected([catalogue.target(1)], [], 1)


def test_an_explanation_is_scored_by_its_detection_where_it_states_the_concept() -> None:
    catalogue = make_catalogue()
    for number, detection in {1: 0.7, 2: 0.9, 3: 0.95, 4: None}.items():
        catalogue.features[number]["detection"] = detection
    catalogue.features[3]["explanation"] = "no effusion, oedema"
    size = SelectSize(12, candidates=2)
    found = choose_all(
        catalogue, (), "", ("effusion", "large effusion"), size, ("explanation",), make_inputs(catalogue)
    )
    assert [(target.feature, target.concept, target.chosen_by) for target in found.targets] == [
        (2, "effusion", (("explanation", 0.9),)),
        (1, "effusion", (("explanation", 0.7),)),
    ]


@pytest.mark.parametrize("rule", ["gradient", "output_score"])
def test_rules_that_read_as_the_language_model_does_are_refused_elsewhere(rule: str) -> None:
    site = Site("projector", 1, "projector.1")
    inputs = dataclasses.replace(make_inputs(make_catalogue()), model=EditedModel(None, None, None, None, site, None))
    with pytest.raises(UserError, match=f"'{rule}' needs a site of the language model, not projector.1"):
        SELECTIONS.get(rule)().scores({"effusion": [1]}, inputs)


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

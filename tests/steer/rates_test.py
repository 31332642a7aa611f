"""How selection scores go with what steering did; the rest of `steer.rates` is tested with the evaluate stage."""

from steer.rates import selection_correlations


def entry(concept, feature, on_target, off_target=0.0, **fields):
    rates = {"on_target": {"rate": on_target}, "off_target": {"rate": off_target}}
    return {"concept": concept, "feature": feature, "method": "add", "intended": "added"} | rates | fields


def test_rank_correlation_over_the_features_of_all_concepts():
    targets = [
        {"concept": "oedema", "feature": 1, "f1": 0.9, "score": 5.0},
        {"concept": "oedema", "feature": 2, "f1": 0.8, "score": 7.0},
        {"concept": "cardiomegaly", "feature": 2, "f1": 0.7, "score": 1.0},
        {"concept": "cardiomegaly", "feature": 3, "f1": None, "score": 0.5},
    ]
    best = [
        entry("oedema", 1, 0.9, 0.2),
        entry("oedema", 2, 0.9),
        entry("cardiomegaly", 2, 0.3),
        entry("cardiomegaly", 3, 0.3, 0.2),
        entry("cardiomegaly", 3, 1.0, method="random"),
        entry("oedema", 2, 0.0, intended="removed"),
        {"concept": "oedema", "feature": 9, "method": "add", "intended": "added", "strength": None},
    ]
    found = selection_correlations(best, targets)
    assert found["score"] == {"spearman": 1.0, "n": 4}
    assert found["f1"] == {"spearman": 0.5, "n": 3}
    assert selection_correlations(best[:2], targets)["f1"] == {"spearman": None, "n": 2}

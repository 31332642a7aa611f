"""The accuracy table of true, of exchanged and of empty reports."""

from maira_jax.phantom.accuracy import accuracy_of_reports
from maira_jax.studies.readers import phantom


def test_accuracy_of_true_and_of_exchanged_reports():
    studies = phantom.studies(0, 150, seed=4)
    texts = [study.findings or "" for study in studies]
    table = accuracy_of_reports(studies, texts)
    for measure in ("presence", "side", "size", "zone", "tip", "comparison"):
        rates = [table.rate(name, measure) for name in table.rows if name != "all"]
        assert min(rate for rate in rates if rate is not None) >= 0.98, measure
    assert table.rate("all", "invented") == 0
    assert str(table).startswith("150 reports\n")
    exchanged = accuracy_of_reports(studies, texts[1:] + texts[:1])
    assert exchanged.rate("all", "size") < 0.3
    assert exchanged.rate("all", "presence") < 0.8
    empty = accuracy_of_reports(studies, [""] * len(studies))
    assert empty.rate("all", "presence") == 0

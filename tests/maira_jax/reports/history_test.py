"""History span rate: which phrases compare with an earlier study, and reports without them."""

import pytest

from maira_jax.reports.history import history_rate, history_rates, history_spans, sentences_of, without_history
from maira_jax.reports.labeller import concepts, extract
from maira_jax.studies.readers import load_studies
from tests.helpers.localized import make_config


@pytest.mark.parametrize(
    ("sentence", "spans"),
    [
        ("Small effusion, unchanged from prior.", "stability: unchanged; comparison: from prior"),
        ("The edema has improved since the prior study.", "improvement: improved; comparison: since the prior study"),
        ("New left effusion.", "new: New"),
        ("Worse than on the previous film.", "worsening: Worse; comparison: on the previous film"),
        ("Increased compared with yesterday.", "worsening: Increased; comparison: compared with yesterday"),
        ("Interval removal of the pacemaker.", "resolved: Interval removal of"),
        ("The tube has been removed.", "resolved: has been removed"),
        ("No interval change.", "stability: No interval change"),
        ("Stable cardiomegaly is again seen.", "stability: Stable; stability: again seen"),
        ("The effusion is no longer present.", "resolved: no longer present"),
        ("As on the prior chest radiograph, the heart is large.", "comparison: on the prior chest radiograph"),
    ],
)
def test_phrases_by_class(sentence, spans):
    found = [f"{kind}: {sentence[start:stop]}" for kind, start, stop in history_spans(sentence)]
    assert "; ".join(found) == spans


@pytest.mark.parametrize(
    "sentence",
    [
        "No prior studies are available.",
        "There are no comparisons.",
        "Comparison: None.",
        "Decreased lung volumes.",
        "Increased interstitial markings.",
        "Prior median sternotomy.",
        "Chronic obstructive pulmonary disease.",
        "The heart is severely enlarged.",
        "No pneumothorax. The lungs are clear.",
        "",
    ],
)
def test_what_is_no_comparison(sentence):
    assert history_spans(sentence) == [] and history_rate(sentence) == 0.0
    assert without_history(sentence) == sentence


def test_a_rate_is_a_share_of_words():
    report = "Small left effusion, unchanged from prior. No pneumothorax."
    rates = history_rates(report)
    assert rates.pop("stability") == pytest.approx(1 / 8) and rates.pop("comparison") == pytest.approx(2 / 8)
    assert set(rates.values()) == {0.0} and history_rate(report) == pytest.approx(3 / 8)


@pytest.mark.parametrize(
    ("report", "left"),
    [
        ("Small left effusion, unchanged from prior. No pneumothorax.", "Small left effusion. No pneumothorax."),
        ("New pacemaker with lead in place.", "Pacemaker with lead in place."),
        ("Interval removal of the pacemaker. Clear lungs.", "Clear lungs."),
        ("No change from the prior study.", ""),
        ("Cardiomegaly is unchanged.", "Cardiomegaly."),
        ("The heart is severely enlarged, new compared with the prior study.", "The heart is severely enlarged."),
    ],
)
def test_reports_without_history(report, left):
    assert without_history(report) == left


def test_sentences_keep_capitals_and_numbers():
    assert list(sentences_of("ET tube 3.5 cm above. No effusion.\nClear. ")) == [
        "ET tube 3.5 cm above.", "No effusion.", "Clear.",
    ]  # fmt: skip


def test_the_phantom_s_reports_lose_comparisons_and_nothing_else():
    seen = 0
    for study in load_studies(make_config().studies):
        text = without_history(study.findings)
        assert history_rate(text) == 0 and not concepts(text)["comparison with prior"]
        assert (history_rate(study.findings) > 0) == (study.prior_frontal is not None)
        present = [
            {(f.name, f.side, f.zone, f.size, f.tip) for f in extract(report) if f.status == "present"}
            for report in (study.findings, text)
        ]
        assert present[0] == present[1]
        seen += study.prior_frontal is not None
    assert seen > 10

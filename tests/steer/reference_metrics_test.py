"""Published metrics: what the programs are asked, with modules that stand in for them, and the test of differences."""

import json
import os
import sys
import types

import numpy as np
import pytest

from interp.llm.section import JudgeSection
from maira_jax.errors import UserError
from steer import reference_metrics
from steer.reference_metrics import SteeredPair, measured, published

REFERENCE = "Left pleural effusion. Cardiomegaly."


def pairs_of(steered, n=8, original="Clear."):
    return [SteeredPair(f"s{i}", REFERENCE, original, steered) for i in range(n)]


class Labeller:
    """Stands in for radeval's CheXbert: the labels of a report are its words."""

    labelled: list = []  # noqa: RUF012

    def get_labels(self, reports, on_batch_done=None):
        self.labelled.extend(reports)
        return [report.split() for report in reports]


class Evaluator:
    """Stands in for radeval.RadEval: the share of the reference's words, in its ways of answering."""

    asked: list = []  # noqa: RUF012

    def __init__(self, metrics, per_sample=False, show_progress=True):
        self.metrics, self.per_sample = metrics, per_sample
        self.f1chexbert_scorer = Labeller()
        assert not show_progress

    def __call__(self, refs, hyps):
        assert isinstance(refs, list) and isinstance(hyps, list)
        self.asked.append((tuple(self.metrics), self.per_sample, len(hyps)))
        if self.metrics == ["f1chexbert"]:
            refs, hyps = (self.f1chexbert_scorer.get_labels(texts, on_batch_done=None) for texts in (refs, hyps))
        else:
            refs, hyps = ([text.split() for text in texts] for texts in (refs, hyps))
        shares = [np.mean([word in hyp for word in ref]) for ref, hyp in zip(refs, hyps, strict=True)]
        if not self.per_sample:
            return {"f1chexbert_all_micro": float(np.mean(shares))}
        return {f"{name}_{part}": list(shares) for name in self.metrics for part in ("partial", "all")}


@pytest.fixture()
def radeval(monkeypatch):
    monkeypatch.setattr(Evaluator, "asked", [])
    monkeypatch.setattr(Labeller, "labelled", [])
    monkeypatch.setitem(sys.modules, "radeval", types.SimpleNamespace(RadEval=Evaluator))


@pytest.fixture()
def runs(monkeypatch):
    """Stands in for radmatch.pipeline_runner: one error for each word that is missing, none known of "Lost."."""
    runs = []

    def run_all(*, reports_pred_dir, output_dir, llm_extractor, llm_judge, reports_gt_dir, fewshot, workers):
        runs.append({name: os.environ[name] for name in ("RADMATCH_LOCAL_BASE_URL", "NO_PROXY")})
        assert llm_extractor == llm_judge == "local:rule" and fewshot == "chest-xr" and workers == 3
        for path in sorted(reports_pred_dir.glob("*.txt")):
            wanted, found = (reports_gt_dir / path.name).read_text().split(), path.read_text().split()
            folder = output_dir / "radmatch_results" / "per_report_metrics"
            folder.mkdir(parents=True, exist_ok=True)
            if found != ["Lost."]:
                errors = {"actionable_errors_total": len(set(wanted) - set(found))}
                (folder / f"{path.stem}.json").write_text(json.dumps(errors))

    runner = types.SimpleNamespace(run_all=run_all)
    monkeypatch.setitem(sys.modules, "radmatch", types.SimpleNamespace(pipeline_runner=runner))
    monkeypatch.setitem(sys.modules, "radmatch.pipeline_runner", runner)
    return runs


def judge(**fields):
    return JudgeSection(model="rule", base_url="http://127.0.0.1:9/v1", concurrency=3, **fields)


def test_radeval_scores_each_report_once_and_chexbert_over_all(radeval, tmp_path):
    pairs = {"add": pairs_of(REFERENCE), "random": pairs_of("Clear.")}
    found = published(("f1chexbert", "radgraph"), pairs, judge, tmp_path, 0)
    assert Evaluator.asked[:2] == [(("f1chexbert",), True, 2), (("radgraph",), True, 2)], "two different texts"
    assert Evaluator.asked[2:] == [(("f1chexbert",), False, 8)] * 4, "before and after, of two methods"
    for metric in ("radgraph_partial", "f1chexbert_partial"):
        better, same = found["add"][metric], found["random"][metric]
        assert (better["before"], better["after"], better["n"]) == (0.0, 1.0, 8) and better["p"] < 0.02
        assert (same["before"], same["after"]) == (0.0, 0.0) and same["p"] == 1.0
    assert found["add"]["f1chexbert_all_micro"] == {"before": 0.0, "after": 1.0, "p": None, "n": 8}


def test_chexbert_labels_each_text_once(radeval, tmp_path):
    """The shares of each report and the F1 of every method rest on the same labels."""
    published(("f1chexbert",), {"add": pairs_of("Cardiomegaly."), "random": pairs_of("Clear.")}, judge, tmp_path, 0)
    assert sorted(Labeller.labelled) == sorted([REFERENCE, "Clear.", "Cardiomegaly."])


def test_radmatch_asks_the_judges_server_and_reads_its_records(runs, tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "elsewhere")
    pairs = {"add": [*pairs_of("Left pleural effusion."), SteeredPair("s9", REFERENCE, "Clear.", "Lost.")]}
    found = published(("radmatch",), pairs, judge, tmp_path, 0)
    errors = found["add"]["radmatch_actionable_errors"]
    assert (errors["before"], errors["after"], errors["n"]) == (4.0, 1.0, 8), "a report without a record counts nowhere"
    assert runs == [{"RADMATCH_LOCAL_BASE_URL": "http://127.0.0.1:9/v1", "NO_PROXY": "127.0.0.1"}]
    assert os.environ["NO_PROXY"] == "elsewhere" and "RADMATCH_LOCAL_BASE_URL" not in os.environ


def test_radmatch_sends_nothing_to_another_machine_unasked(runs, tmp_path):
    section = JudgeSection(model="rule", base_url="https://example.org/v1")
    with pytest.raises(UserError, match="which is not this machine"):
        published(("radmatch",), {"add": pairs_of("Clear.")}, lambda: section, tmp_path, 0)
    assert not runs and not list(tmp_path.iterdir())


@pytest.mark.parametrize(("name", "extra"), [("green", "metrics"), ("radmatch", "radmatch")])
def test_what_is_not_installed_is_named(name, extra, tmp_path, monkeypatch):
    for module in ("radeval", "radmatch", "radmatch.pipeline_runner"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=rf"pip install 'maira-jax\[{extra}\]'"):
        published((name,), {"add": pairs_of("Clear.")}, judge, tmp_path, 0)


def test_reports_of_a_study_are_swapped_together():
    """The exact test over all 2^n swaps of studies: fifty reports on four studies are no more than four."""
    rng = np.random.default_rng(0)
    gains = {f"s{i}": rng.normal(0.5) for i in range(4)}
    pairs = [SteeredPair(study, REFERENCE, "0", str(gain)) for study, gain in gains.items() for _ in range(12)]
    found = measured({"add": pairs}, lambda _, reports: {"own": [float(text) for text in reports]}, 0)["add"]["own"]
    sums = np.array(list(gains.values()))
    signs = np.array([[1 if n >> i & 1 else -1 for i in range(4)] for n in range(16)])
    exact = np.mean(np.abs(signs @ sums) >= abs(sums.sum()) - 1e-9)
    assert found["p"] == pytest.approx(exact) and found["after"] == pytest.approx(sums.mean())
    one = measured({"add": pairs[:12]}, lambda _, reports: {"own": [float(text) for text in reports]}, 0)
    assert one["add"]["own"]["p"] is None
    assert reference_metrics._compared([], {}, 0) == {"before": None, "after": None, "p": None, "n": 0}

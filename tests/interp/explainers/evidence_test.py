"""What an explainer is shown."""

from interp.explainers.evidence import Example, ExplainTask, explain_task, top_tokens
from tests.helpers.judge import exemplar_rows


def test_example_marks_runs_of_strong_tokens_and_lists_strengths():
    shown = Example("findings", (" Small", " pleural", " effus", "ion", "."), (0.0, 0.31, 0.9, 1.0, 0.05))
    assert shown.text == "findings: Small pleural effusion."
    assert shown.marked() == "findings: Small <<pleural effusion>>."
    assert shown.strengths == (0, 4, 9, 10, 1)


def test_only_train_contexts_are_shown_and_not_the_strongest():
    table = exemplar_rows("train") + exemplar_rows("held_out")
    shown = explain_task(7, table, 20, 10)
    assert isinstance(shown, ExplainTask) and shown.feature == 7
    assert all("train" in e.text and "top" not in e.text for e in (*shown.activating, *shown.others))
    assert (len(shown.activating), len(shown.others)) == (20, 20)
    assert top_tokens(table)[0] == "decile"


def test_features_that_cannot_be_explained_say_why():
    table = exemplar_rows("train", n=20)
    assert explain_task(0, table, 20, 25) == "active in fewer than 25 train contexts"
    few = [row for row in table if row["kind"] != "random"] + [row for row in table if row["kind"] == "random"][:12]
    assert explain_task(0, few, 20, 15) == "fewer than 15 of the sampled train contexts are non-activating"
    assert explain_task(0, [row for row in table if row["kind"] == "random"], 20, 10) == "never active"

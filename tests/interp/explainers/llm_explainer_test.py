"""The explainer that asks a language model: what it shows, and what it takes for an explanation."""

import hashlib
import json

import pytest

from interp.explainers.evidence import Example, ExplainTask
from interp.explainers.llm_explainer import PROMPT, Explained
from interp.llm.requests import instructions
from tests.helpers.judge import interpreters, make_client

# A text that was used never changes: whoever changes one adds a file with the next number.
DIGEST = "1b1cb66d6e120c21"


@pytest.fixture
def explainer(tmp_path):
    return interpreters(make_client("http://127.0.0.1:1/v1", tmp_path))[0]


def test_prompt_and_schema_are_what_the_number_says(explainer):
    form = explainer.request(ExplainTask(0, (), ())).response_format
    content = instructions(PROMPT) + json.dumps(form, sort_keys=True)
    assert hashlib.sha256(content.encode()).hexdigest()[:16] == DIGEST
    assert form["json_schema"]["schema"]["additionalProperties"] is False


def test_explaining_shows_marked_tokens_and_strengths_evenly_from_all_deciles(explainer, monkeypatch):
    def example(i):
        return Example("findings", (" No", " pleural", " effus", "ion", "."), (0.0, 0.4, i / 100, 0.9, 0.01))

    monkeypatch.setattr("interp.explainers.llm_explainer.N_EXAMPLES", 5)
    request = explainer.request(ExplainTask(3, tuple(example(i) for i in range(100)), (example(0),)))
    shown = json.loads(request.messages[-1]["content"])["examples"]
    assert [entry["example"] for entry in shown] == [1, 2, 3, 4, 5]
    assert shown[-1] == {
        "example": 5, "text": "findings: No <<pleural effusion>>.",
        "strengths": [["effus", 10], ["ion", 9], ["pleural", 4]],
    }  # fmt: skip
    assert request.messages[0] == {"role": "system", "content": instructions(PROMPT)}
    assert request.tokens == pytest.approx(len(instructions(PROMPT)) / 4 + 150, rel=0.2)


def test_names_and_explanations_are_one_line_of_some_length(explainer):
    request = explainer.request(ExplainTask(0, (), ()))
    assert request.read('{"label": " a\\nb\\u001b ", "explanation": "c"}') == Explained(label="a b", explanation="c")
    for text in ('{"label": "", "explanation": "c"}', json.dumps({"label": "a", "explanation": "x" * 3000})):
        with pytest.raises(ValueError):
            request.read(text)


def test_the_form_itself_is_no_explanation(explainer):
    """As a small model answered."""
    form = instructions(PROMPT).splitlines()[-1]
    assert form.startswith('{"label": "<')
    with pytest.raises(ValueError, match="the prompt's own words"):
        explainer.request(ExplainTask(0, (), ())).read(form)

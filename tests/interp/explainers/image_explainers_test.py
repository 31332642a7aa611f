"""The explainers of features of images: what a vision model is shown, and what it takes for an explanation."""

import hashlib
import io
import json

import numpy as np
import pytest
from PIL import Image

from interp.exemplars.shown import ImageAt
from interp.explainers.chat_model import ChatModel
from interp.explainers.evidence import Example, ExplainTask, image_task
from interp.explainers.image_explainers import PROMPT, ImageExplained, LlmImageExplainer, OfflineImageExplainer
from interp.llm.requests import instructions
from maira_jax.errors import UserError
from tests.helpers.judge import make_client

# A text that was used never changes: whoever changes one adds a file with the next number.
DIGEST = "049eded37d64c965"


def pngs(places):
    return [png(at) for at in places]


def png(at):
    file = io.BytesIO()
    Image.fromarray(np.full((4, 4), at.position, np.uint8)).save(file, "PNG")
    return file.getvalue()


def explainer(tmp_path, n_images=6):
    model = ChatModel(make_client("http://127.0.0.1:1/v1", tmp_path), n_images, pngs)
    return LlmImageExplainer(lambda: model, dict)


def example(strength, study="s"):
    return Example("image", (), (strength / 10,), ImageAt(study, strength))


def test_prompt_and_schema_are_what_the_number_says(tmp_path):
    form = explainer(tmp_path).request(ExplainTask(0, (example(1),), ())).response_format
    content = instructions(PROMPT) + json.dumps(form, sort_keys=True)
    assert hashlib.sha256(content.encode()).hexdigest()[:16] == DIGEST
    assert form["json_schema"]["schema"]["additionalProperties"] is False


def test_the_strongest_images_and_weaker_ones_are_shown_and_nothing_else(tmp_path):
    task = ExplainTask(3, tuple(example(s, "SECRET") for s in (10, 9, 8, 7, 6, 5, 4, 3)), (example(1, "OTHER"),))
    request = explainer(tmp_path).request(task)
    text, *parts = request.messages[-1]["content"]
    shown = json.loads(text["text"])["examples"]
    assert [(entry["group"], entry["strength"]) for entry in shown] == [
        ("strong", 10), ("strong", 9), ("strong", 8), ("weaker", 7), ("weaker", 5), ("weaker", 3),
    ]  # fmt: skip
    assert [entry["picture"] for entry in shown] == [1, 2, 3, 4, 5, 6]
    assert [part["type"] for part in parts] == ["text", "image_url"] * 6
    assert "SECRET" not in json.dumps(request.messages) and "OTHER" not in json.dumps(request.messages)


@pytest.mark.parametrize(
    "text",
    [
        '{"concept": "", "description": "c"}',
        '{"concept": "a"}',
        '{"concept": "a", "description": "c", "more": 1}',
        '{"concept": 3, "description": "c"}',
        'It shows {"concept": "a", "description": "c"}',
        json.dumps({"concept": "a" * 300, "description": "c"}),
        "",
    ],
)
def test_answers_of_another_form_are_refused(tmp_path, text):
    request = explainer(tmp_path).request(ExplainTask(0, (example(1),), ()))
    assert request.read('{"concept": " a\\nb ", "description": "c"}') == ImageExplained(concept="a b", description="c")
    with pytest.raises(ValueError):
        request.read(text)


def test_a_model_that_reads_no_images_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"judge.images is 0, .*--config.judge.images=30"):
        explainer(tmp_path, 0)


def test_the_offline_explainer_names_labels_and_itself():
    labels = {}
    offline = OfflineImageExplainer(lambda: None, lambda: dict(labels))
    labels |= {"a": {"edema": True}, "b": {"edema": False}}  # of a store that is there only now
    (found,) = offline.explain([ExplainTask(0, (example(1, "a"),), (example(1, "b"),))])
    assert (found.name, found.text) == ("edema", 'Offline judge: images with "edema".') and found.cost == 0
    assert "no vision model" in offline.name


def rows(kind, n, split="train", begin=0):
    return [
        {
            "split": split,
            "kind": kind,
            "section": "image",
            "study_id": f"s{i}",
            "position": 0,
            "max_activation": 1.0 * i,
        }
        for i in range(begin, begin + n)
    ]


def test_a_task_shows_each_train_image_once_from_strong_to_weak():
    given = rows("decile", 4, begin=2) + rows("top", 3, begin=4) + rows("random", 3, begin=20)
    task = image_task(0, given + rows("top", 2, "held_out", 50), 2, 2)
    assert [one.image.study_id for one in task.activating] == ["s6", "s5", "s4", "s3", "s2"]
    assert len(task.others) == 2
    assert task.activating[0].activations == (6 / 22,)
    assert image_task(0, given, 2, 5) == "active in fewer than 5 train images"
    assert image_task(0, given, 2, 4) == "inactive in fewer than 4 train images"
    assert image_task(0, rows("random", 3), 2, 2) == "never active"

"""Chat requests: what is asked, what the key depends on, and how answers are read."""

import io
import json
from typing import Literal

import numpy as np
import pytest
from PIL import Image

from interp.llm.requests import ChatAnswer, chat_request


class Toy(ChatAnswer):
    answer: Literal["yes", "no"]


@pytest.fixture
def prompt(tmp_path):
    path = tmp_path / "toy-1.txt"
    path.write_text("Say yes or no.")
    return path


def png(level):
    file = io.BytesIO()
    Image.fromarray(np.full((8, 8), level, np.uint8)).save(file, "PNG")
    return file.getvalue()


def test_a_request_is_instructions_and_one_object_on_one_line(prompt):
    request = chat_request(prompt, {"text": "a\nb \u00e4"}, Toy)
    assert request.prompt == "toy-1"
    assert request.messages == [
        {"role": "system", "content": "Say yes or no."},
        {"role": "user", "content": '{"text": "a\\nb \u00e4"}'},
    ]
    form = request.response_format["json_schema"]
    assert form["name"] == "toy" and form["strict"] and form["schema"]["additionalProperties"] is False
    assert request.tokens == (14 + 18) // 4


def test_a_server_that_knows_schemas_is_told_how_many_answers_there_are(prompt):
    class Listed(ChatAnswer):
        answers: list[int]
        why: str

    form = chat_request(prompt, {}, Listed, n_items=3).response_format["json_schema"]["schema"]["properties"]
    assert (form["answers"]["minItems"], form["answers"]["maxItems"]) == (3, 3) and "minItems" not in form["why"]
    assert "minItems" not in str(chat_request(prompt, {}, Listed).response_format)


def test_the_key_depends_on_all_that_decides_the_answer(prompt):
    request = chat_request(prompt, {"text": "a"}, Toy)
    key = request.key("model", {"temperature": 0.0})
    assert key == chat_request(prompt, {"text": "a"}, Toy).key("model", {"temperature": 0.0}) and len(key) == 64
    second = prompt.with_stem("toy-2")
    second.write_text("Say yes or no.")
    others = [
        request.key("other", {"temperature": 0.0}),
        request.key("model", {"temperature": 0.1}),
        chat_request(second, {"text": "a"}, Toy).key("model", {"temperature": 0.0}),
        chat_request(prompt, {"text": "b"}, Toy).key("model", {"temperature": 0.0}),
        chat_request(prompt, {"text": "a"}, Toy, pictures=[png(9)]).key("model", {"temperature": 0.0}),
    ]
    assert len({key, *others}) == 6


def test_answers_are_read_without_their_fence_and_refused_in_another_form(prompt):
    request = chat_request(prompt, {}, Toy)
    assert request.read('```json\n{"answer": "yes"}\n```').answer == "yes"
    for text in ('{"answer": "maybe"}', '{"answer": "no", "more": 1}', '{"answer": "no"', "yes", ""):
        with pytest.raises(ValueError):
            request.read(text)


def test_pictures_follow_the_data_and_are_recorded_by_their_digests(prompt):
    request = chat_request(prompt, {"picture": 2}, Toy, pictures=[png(9), png(200)])
    parts = request.messages[-1]["content"]
    assert [part["type"] for part in parts] == ["text", "text", "image_url", "text", "image_url"]
    assert parts[2]["image_url"]["url"].startswith("data:image/png;base64,")
    recorded = request.recorded()
    assert json.loads(recorded[0]) == {"picture": 2} and [len(part) for part in recorded[2::2]] == [64, 64]
    assert 512 <= request.tokens < 530

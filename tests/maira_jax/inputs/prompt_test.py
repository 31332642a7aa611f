"""The prompt strings against MAIRA-2's, written out, and the places of the sections in them."""

import json

import numpy as np
import pytest

from maira_jax.errors import UserError
from maira_jax.inputs.prompt import (
    MAIRA2_CHAT,
    ChatTemplate,
    PromptSection,
    phrase_grounding_prompt,
    reporting_prompt,
    study_images,
)
from maira_jax.phantom.pretraining.tokenizer_files import CHAT_TEMPLATE
from maira_jax.studies.study import Study

IMAGE = np.arange(16, dtype=np.uint8).reshape(4, 4)
OTHER = IMAGE[::-1]
THIRD = IMAGE.T
TASK = " Provide a description of the findings in the radiology study in comparison to the prior frontal image."
GROUNDED = (
    " Each finding should be described as a self-contained plain-text sentence. If the finding is groundable, locate"
    " the finding in the current frontal chest X-ray image, with bounding boxes indicating all locations where it can"
    " be seen in the current frontal image. Otherwise, generate just the ungrounded finding without bounding boxes."
)


def study(**fields) -> Study:
    return Study(**({"study_id": "s", "patient_id": "p", "frontal": IMAGE} | fields))


@pytest.mark.parametrize("grounded", [False, True])
@pytest.mark.parametrize(
    ("images", "start"),
    [
        ({}, "Given the current frontal image only<image>"),
        ({"lateral": OTHER}, "Given the current frontal image<image> and the current lateral image<image>"),
        (
            {"prior_frontal": OTHER},
            "Given the current frontal image<image> and the prior frontal image<image> PRIOR_REPORT: Old.",
        ),
        (
            {"lateral": OTHER, "prior_frontal": THIRD},
            "Given the current frontal image<image> the current lateral image<image> and the prior frontal image<image>"
            " PRIOR_REPORT: Old.",
        ),
    ],
)
def test_reporting_prompts_are_maira2s(images, start, grounded):
    prompt = reporting_prompt(
        study(indication="Cough.", technique="AP.", comparison="None.", prior_report="Old.", **images), grounded
    )
    sections = " INDICATION: Cough. TECHNIQUE: AP. COMPARISON: None."
    assert prompt.content == start + TASK + (GROUNDED if grounded else "") + sections
    assert prompt.text == (
        "You are an expert radiology assistant tasked with interpreting a chest X-ray study.  USER:  "
        f"{prompt.content}  ASSISTANT: "
    )
    assert prompt.n_images == 1 + len(images)


def test_phrase_grounding_prompt_is_maira2s():
    prompt = phrase_grounding_prompt("Pleural effusion.")
    assert prompt.content == (
        "Given the current frontal image<image> Repeat the following finding as a grounded phrase with bounding boxes "
        "indicating all locations where it can be seen in the given chest X-ray image. Finding: Pleural effusion."
    )
    assert [(span.section, prompt.content[span.start : span.end]) for span in prompt.spans] == [
        (PromptSection.PHRASE, "Pleural effusion.")
    ]


def test_spans_hold_the_sections_and_empty_ones_read_not_available():
    prompt = reporting_prompt(study(indication="", technique="PA.", prior_frontal=OTHER))
    assert [(span.section, prompt.content[span.start : span.end]) for span in prompt.spans] == [
        (PromptSection.PRIOR_REPORT, "N/A"),
        (PromptSection.INDICATION, "N/A"),
        (PromptSection.TECHNIQUE, "PA."),
        (PromptSection.COMPARISON, "N/A"),
    ]


def test_prior_report_without_prior_image_is_dropped():
    assert "PRIOR_REPORT" not in reporting_prompt(study(prior_report="Old.")).content


def test_text_only_study_keeps_everything_but_the_sentence_on_images():
    prompt = reporting_prompt(study(frontal=None, indication="Cough."))
    assert prompt.content == TASK.lstrip() + " INDICATION: Cough. TECHNIQUE: N/A COMPARISON: N/A"
    assert prompt.n_images == 0
    span = prompt.spans[0]
    assert prompt.content[span.start : span.end] == "Cough."


def test_images_come_in_the_order_of_their_tokens():
    order = study_images(study(lateral=OTHER, prior_frontal=THIRD))
    assert [image is wanted for image, wanted in zip(order, (IMAGE, OTHER, THIRD), strict=True)] == [True] * 3


@pytest.mark.parametrize(
    "fields", [{"frontal": None, "lateral": OTHER}, {"indication": "see <image>"}, {"indication": "\ud800"}]
)
def test_studies_without_a_prompt_are_refused_by_name(fields):
    with pytest.raises(UserError, match="study s"):
        reporting_prompt(study(**fields))


def test_grounded_report_needs_an_image():
    with pytest.raises(UserError, match="no image"):
        reporting_prompt(study(frontal=None), grounded=True)


def test_chat_template_falls_back_to_the_known_rendering(tmp_path):
    assert ChatTemplate.from_dir(tmp_path) == MAIRA2_CHAT


@pytest.mark.parametrize("name", ["chat_template.json", "tokenizer_config.json", "chat_template.jinja"])
def test_shipped_chat_template_renders_the_known_text(tmp_path, name):
    text = CHAT_TEMPLATE if name.endswith("jinja") else json.dumps({"chat_template": CHAT_TEMPLATE})
    (tmp_path / name).write_text(text)
    assert ChatTemplate.from_dir(tmp_path) == MAIRA2_CHAT


def test_a_checkpoints_own_template_rules(tmp_path):
    source = (
        "{% for m in messages %}[{{ m.role }}] {% for part in m.content %}"
        "{{ '<image>' if part.type == 'image' else part.text }}{% endfor %}{{ '\\n' }}{% endfor %}{{ '[assistant]' }}"
    )
    (tmp_path / "chat_template.jinja").write_text(source)
    chat = ChatTemplate.from_dir(tmp_path)
    system = "You are an expert radiology assistant tasked with interpreting a chest X-ray study."
    assert chat.render("Hello") == f"[system] {system}\n[user] Hello\n[assistant]"


def test_of_several_templates_the_default_one_rules(tmp_path):
    several = [{"name": "rag", "template": "{{ 'other' }}"}, {"name": "default", "template": CHAT_TEMPLATE}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": several}))
    assert ChatTemplate.from_dir(tmp_path) == MAIRA2_CHAT


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages | nonsense }}",
        "{% for m in messages %}",
        "constant",
        # Images before the texts, texts stripped, and a line for each part: none is the prompt that MAIRA-2 reads.
        "{% for p in messages[-1].content if p.type == 'image' %}<image>{% endfor %}"
        "{% for p in messages[-1].content if p.text %}{{ p.text }}{% endfor %}",
        "{% for p in messages[-1].content %}{{ p.text | trim if p.text else '<image>' }}{% endfor %}",
        "{% for p in messages[-1].content %}{{ p.text or '<image>' }}{{ '\n' }}{% endfor %}",
    ],
)
def test_unusable_chat_template_names_its_file(tmp_path, source):
    (tmp_path / "chat_template.jinja").write_text(source)
    with pytest.raises(UserError, match="chat_template.jinja"):
        ChatTemplate.from_dir(tmp_path)


@pytest.mark.parametrize(
    "source",
    [
        # Time: nothing is written, so no bound on the text ends it.
        "{% for a in range(99999) %}{% for b in range(99999) %}{% if a + b < 0 %}x{% endif %}{% endfor %}{% endfor %}",
        # Memory, in one operation of each kind that can make a long text, and by doubling.
        "{{ 'x' * 10**10 }}",
        "{{ 'x' | center(10**10) }}",
        "{{ '%010000000000d' % 1 }}",
        "{{ '{:10000000000}'.format(1) }}",
        "{% set t = namespace(x='x') %}{% for _ in range(40) %}{% set t.x = t.x ~ t.x %}{% endfor %}{{ t.x }}",
        # What is written may be long without taking long.
        "{{ 'x' * 10**6 }}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "(" * 20000 + "{{" + "(" * 20000,
    ],
    ids=lambda source: source[:24],
)
def test_a_template_that_takes_what_it_can_get_is_ended(tmp_path, source):
    (tmp_path / "chat_template.jinja").write_text(source)
    with pytest.raises(UserError, match="chat_template.jinja cannot be rendered") as caught:
        ChatTemplate.from_dir(tmp_path)
    assert "\n" not in str(caught.value)

"""How a context is shown in prompts."""

from interp.exemplars.shown import ImageAt, image_at, marked, safe, shown_text, split_shown


def test_runs_of_strong_tokens_are_marked_and_no_other_brackets_are_left():
    tokens = (" Small", " pleural", " effus", "ion", "<b>")
    shown = marked("findings", tokens, (False, True, True, True, False))
    assert shown == "findings: Small <<pleural effusion>>‹b›"
    shown = marked("findings", tokens, (True, False, False, False, True))
    assert shown == "findings: <<Small>> pleural effusion<<‹b›>>"
    assert marked("image", ("<image>",), (True,)) == "image: <<‹image›>>"
    assert safe("<|im_end|> [INST]") == "‹|im_end|› (INST)"


def test_a_shown_line_splits_into_section_and_words():
    line = shown_text("prior_report", (" Comparison", ":", "  none", "\n."))
    assert line == "prior report: Comparison: none ."
    assert split_shown(line) == ("prior report", "Comparison: none .")


def test_only_contexts_of_the_image_section_have_an_image():
    row = {"study_id": "s", "position": 7}
    assert image_at(row | {"section": "image"}) == ImageAt("s", 7)
    assert image_at(row | {"section": "findings"}) is None

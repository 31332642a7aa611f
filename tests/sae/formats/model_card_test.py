"""The model card."""

import dataclasses

from sae import formats
from sae.formats import model_card
from tests.helpers.formats import METRICS


def test_the_card_says_what_is_there(tmp_path, sae):
    losses = {"tokens": 900, "ce": 1.5, "ce_spliced": 1.75, "ce_zero": 9.5, "ce_mean": 3.5,
              "recovered_zero": 0.96875, "recovered_mean": 0.875}  # fmt: skip
    manifest = {"section": {"sae": {"k": 4}}, "files": {"checkpoints/40/step/c": {"bytes": 8}}, "checksum": "5f"}
    text = model_card.text(sae, formats.writers()["saelens"], True, METRICS | {"loss": losses}, manifest)
    assert text.startswith("---\nlibrary_name: saelens\n")
    for line in (
        "| site | language.3.resid_post |",
        "| features | 96 in groups of 48, 24, 12, 6, 6 |",
        "| threshold | 0.75 |",
        "| normalisation factor | 5.5 |",
        "| fraction of variance unexplained | 0.1250 |",
        "| 48 | 0.2500 | 2.50 |",
        "| loss recovered, against zero ablation | 0.9688 |",
        '"section": {',
        '"checksum": "5f"',
    ):
        assert line in text, line
    assert "checkpoints" not in text
    elsewhere = dataclasses.replace(sae, meta=dict(sae.meta) | {"source": {"checkpoint": "weights|old"}})
    text = model_card.text(elsewhere, formats.writers()["saelens"], True, METRICS, manifest)
    assert "| model | weights\\|old |" in text
    assert "divided by 5.5" in model_card.text(sae, formats.writers()["safetensors"], False, METRICS, {})

"""Pretraining: a resumed run, a checkpoint that the rest can read, and the accuracy of its reports."""

import dataclasses
import json

import numpy as np
import pytest
import safetensors.numpy

from maira_jax.checkpoint import convert
from maira_jax.errors import UserError
from maira_jax.inputs.tokens import Tokenizer
from maira_jax.model.config import Maira2Config
from maira_jax.phantom.pretraining import report_phase, stage
from maira_jax.phantom.pretraining.recipe import Task, TaskBatch
from maira_jax.studies.readers import phantom
from tests.helpers.fixed_writer import FixedWriter
from tests.helpers.tiny_recipe import FULL_PROMPT, tiny_config


def weights(workdir):
    return workdir / "pretrain" / stage.CHECKPOINT / "model.safetensors"


def test_a_resumed_run_is_bit_identical(trained, tmp_path, monkeypatch):
    whole, counts = trained
    calls, step = 0, report_phase.step

    def dies(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == 6:  # after a checkpoint in the middle of the second phase
            raise KeyboardInterrupt
        return step(*args, **kwargs)

    monkeypatch.setattr(report_phase, "step", dies)
    with pytest.raises(KeyboardInterrupt):
        stage.run(tiny_config(), tmp_path)
    monkeypatch.undo()
    assert stage.run(tiny_config(), tmp_path) == counts
    assert weights(tmp_path).read_bytes() == weights(whole).read_bytes()
    losses = (json.loads((workdir / "pretrain" / "losses.json").read_text()) for workdir in (tmp_path, whole))
    assert next(losses) == next(losses)


def test_each_phase_has_studies_of_its_own(tmp_path, monkeypatch):
    begun, stream = [], stage.ReportBatchStream

    def recorded(source, tokenizer, image_cfg, phase, batch, first=0):
        begun.append((phase.name, first))
        return stream(source, tokenizer, image_cfg, phase, batch, first)

    monkeypatch.setattr(stage, "ReportBatchStream", recorded)
    stage.run(tiny_config(), tmp_path)
    assert begun[:2] == [("one_image", 0), ("full_prompt", 1 << 16)]


def test_frozen_parts_stay_as_the_vision_phase_left_them(trained, tmp_path):
    stage.run(tiny_config("tiny_one_phase"), tmp_path)
    one, two = (safetensors.numpy.load_file(weights(workdir)) for workdir in (tmp_path, trained[0]))
    same = {name: np.array_equal(one[name], two[name]) for name in one}
    assert all(equal == (not name.startswith("language_model")) for name, equal in same.items() if "norm" not in name)


def test_the_checkpoint_is_a_whole_maira2_checkpoint(checkpoint):
    cfg = Maira2Config.from_dir(checkpoint)
    params = convert.to_flax(checkpoint, cfg, np.dtype(np.float32))
    tokenizer = Tokenizer.from_dir(checkpoint)
    assert tokenizer.vocab_size == cfg.text.vocab_size <= params["language"]["embed"].shape[0]
    assert tokenizer.image_id == cfg.image_token_id == 500 + 204
    assert cfg.text.rope_factor == 1.5 and cfg.projector_n_layers == 4


def test_reports_of_the_held_out_studies_are_compared_with_the_truth(trained):
    found = json.loads((trained[0] / "pretrain" / "accuracy.json").read_text())
    assert [record["study_id"] for record in found["reports"]] == [f"phantom-0-{(1 << 20) + i}" for i in range(8)]
    assert found["rows"]["all"]["presence"][1] == 8 * 9
    assert "grounding" not in found, "the recipe has no grounded reports"


def test_a_recipe_with_grounded_reports_is_evaluated_on_boxes(tmp_path, monkeypatch, capsys):
    """On any model; here one that writes the same of every study."""
    box = "<obj>Cardiomegaly.<box><x30><y40><x80><y80></box></obj>"
    lengths = []

    def writer(directory, length):
        lengths.append(length)
        return FixedWriter(lambda name, prompt: box)

    monkeypatch.setattr(stage, "checkpoint_writer", writer)
    studies = phantom.studies(0, 6, size=28)
    phase = dataclasses.replace(FULL_PROMPT, further=(TaskBatch(Task.GROUNDED_REPORT, 2, (512,), 300),))
    found = stage._accuracy(tmp_path, studies, phase)
    assert found["grounding"]["n_reports"] == 6 and len(found["grounded_reports"]) == 6
    assert "phrase_iou" in capsys.readouterr().out
    assert stage._accuracy(tmp_path, studies, FULL_PROMPT).keys() == {"rows", "reports"}
    assert lengths == [300, 250], "a text may be as long as the longest that is learned"


def test_another_recipe_in_the_same_folder_is_refused(trained):
    with pytest.raises(UserError, match="recipe"):
        stage.run(tiny_config("tiny_one_phase"), trained[0])


def test_an_unknown_recipe_is_refused(tmp_path):
    with pytest.raises(UserError, match="pretrain.recipe is 'large': choose from phantom, nih_iu"):
        stage.run(tiny_config("large"), tmp_path)
    assert not (tmp_path / "pretrain").exists()

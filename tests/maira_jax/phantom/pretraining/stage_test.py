"""Pretraining: streams that can be taken up anywhere, a resumed run, and a checkpoint that the rest can read."""

import jax
import numpy as np
import pytest
import safetensors.numpy

from configs import phantom as phantom_config
from maira_jax.checkpoint import convert
from maira_jax.errors import UserError
from maira_jax.inputs.image import ImageConfig
from maira_jax.inputs.tokens import Tokenizer
from maira_jax.model import maira2
from maira_jax.model.config import Maira2Config
from maira_jax.phantom.evaluate import examine
from maira_jax.phantom.pretraining import source, stage, text_phase
from maira_jax.phantom.pretraining.stream import TextStream
from maira_jax.studies.readers import phantom


def tiny():
    config = phantom_config.get_config()
    section = config.pretrain
    section.update({"n_corpus": 300, "n_base": 500, "n_held_out": 8, "checkpoint_every": 2})
    section.vision.update({"width": 16, "layers": 1, "heads": 2, "image_size": 56})
    section.text.update({"width": 32, "mlp_width": 24, "layers": 2, "heads": 2})
    section.vision_phase.update({"steps": 4, "batch_size": 8, "warmup": 1})
    section.text_phases = ("reading", "prose")
    for name in section.text_phases:
        section[name].update({"steps": 3, "batch_size": 4, "warmup": 1, "lengths": (512,), "max_findings": 250})
    return config


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("pretrain")
    return workdir, stage.run(tiny(), workdir)


def checkpoint(workdir):
    return workdir / "pretrain" / stage.CHECKPOINT


def test_a_resumed_run_is_bit_identical(trained, tmp_path, monkeypatch):
    whole, counts = trained
    calls, step = 0, text_phase.step

    def dies(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        return step(*args, **kwargs)

    monkeypatch.setattr(text_phase, "step", dies)
    with pytest.raises(KeyboardInterrupt):
        stage.run(tiny(), tmp_path)
    monkeypatch.undo()
    assert stage.run(tiny(), tmp_path) == counts
    ours = (checkpoint(tmp_path) / "model.safetensors").read_bytes()
    assert ours == (checkpoint(whole) / "model.safetensors").read_bytes()


def test_frozen_parts_stay_as_the_vision_phase_left_them(trained, tmp_path):
    config = tiny()
    config.pretrain.text_phases = config.pretrain.text_phases[:1]
    config.pretrain.n_held_out = 4
    stage.run(config, tmp_path)
    once, thrice = (safetensors.numpy.load_file(checkpoint(d) / "model.safetensors") for d in (tmp_path, trained[0]))
    same = {name: np.array_equal(once[name], thrice[name]) for name in once}
    assert all(equal == (not name.startswith("language_model")) for name, equal in same.items() if "norm" not in name)


def test_the_checkpoint_is_a_whole_maira2_checkpoint(trained):
    directory = checkpoint(trained[0])
    cfg = Maira2Config.from_dir(directory)
    params = convert.to_flax(directory, cfg, np.dtype(np.float32))
    tokenizer = Tokenizer.from_dir(directory)
    assert tokenizer.vocab_size == cfg.text.vocab_size == params["language"]["embed"].shape[0]
    assert tokenizer.image_id == cfg.image_token_id == 500 + 204
    assert cfg.text.rope_factor == 1.5 and cfg.projector_n_layers == 4
    card, records = examine(tiny(), directory)
    assert card.reports == len(records) == 8


def test_the_loss_counts_the_findings_and_nothing_else(trained):
    directory = checkpoint(trained[0])
    cfg = Maira2Config.from_dir(directory)
    params = convert.to_flax(directory, cfg, np.dtype(np.float32))
    stream = stream_of(directory)
    batch = stream.take()
    total, count = text_phase.loss(params, cfg, batch, 250)

    logits = np.asarray(maira2.forward(params, cfg, batch.tokens, batch.mask, batch.pixels).logits, np.float64)
    slow, number = 0.0, 0
    for row, column in zip(*np.nonzero(np.asarray(batch.target)), strict=True):
        scores = logits[row, column - 1]
        slow += np.log(np.exp(scores - scores.max()).sum()) + scores.max() - scores[batch.tokens[row, column]]
        number += 1
    assert int(count) == number
    assert abs(float(total) - slow) < 1e-5 * slow


def stream_of(directory):
    size = ImageConfig.from_dir(directory).size
    studies = source.PhantomSource(0, size, 8)
    return TextStream(studies, Tokenizer.from_dir(directory), ImageConfig.from_dir(directory), 4, (300, 512), 250)


def test_a_stream_goes_on_where_it_was(trained):
    stream = stream_of(checkpoint(trained[0]))
    for _ in range(3):
        stream.take()
    place, expected = stream.place(), [stream.take() for _ in range(4)]
    other = stream_of(checkpoint(trained[0]))
    other.go_to(place)
    for batch in expected:
        jax.tree.map(np.testing.assert_array_equal, other.take(), batch)


def test_held_out_phantom_studies_are_never_trained_on():
    studies = source.PhantomSource(0, 56, 4)
    assert [study.study_id for study in studies.held_out] == [
        study.study_id for study in phantom.studies(1 << 20, (1 << 20) + 4, 0, 56)
    ]


def test_a_finite_source_keeps_patients_apart_and_passes_over_all():
    studies = phantom.studies(0, 40, seed=3, size=28)
    finite = source.FiniteSource(studies, seed=0, size=28, held_out_fraction=0.3)
    held_out = {study.patient_id for study in finite.held_out}
    assert 0 < len(finite.held_out) < 40 and len(finite.held_out) + len(finite.train) == 40
    n = len(finite.train)
    for epoch in range(2):
        seen = finite.studies(epoch * n, (epoch + 1) * n)
        assert {study.study_id for study in seen} == {study.study_id for study in finite.train}
        assert not held_out & {study.patient_id for study in seen}
    assert finite.studies(0, n) != finite.studies(n, 2 * n)
    images, labels, known = finite.pictures(0, 5)
    assert images.shape == (5, 28, 28) and labels.shape == known.shape == (5, len(finite.labels)) and known.all()


def test_a_warmup_longer_than_its_phase_is_refused(tmp_path):
    config = phantom_config.get_config()
    config.pretrain.prose.steps = 50
    with pytest.raises(UserError, match=r"pretrain.prose.warmup is 100, but must be below pretrain.prose.steps \(50\)"):
        stage.run(config, tmp_path)
    assert not (tmp_path / "pretrain").exists()

"""Streams of batches resume anywhere and hold only studies that fit."""

import dataclasses

import jax
import numpy as np
import pytest

from maira_jax.errors import UserError
from maira_jax.generation import grounding
from maira_jax.inputs.image import ImageConfig
from maira_jax.inputs.prompt import phrase_grounding_prompt, reporting_prompt
from maira_jax.inputs.tokens import Tokenizer
from maira_jax.phantom.pretraining.batch_streams import ImageBatchStream, ReportBatchStream
from maira_jax.phantom.pretraining.study_source import PhantomStudySource
from tests.helpers.tiny_recipe import FULL_PROMPT


def report_stream(directory, **changes):
    image_cfg = ImageConfig.from_dir(directory)
    phase = dataclasses.replace(FULL_PROMPT, **{"lengths": (300, 512)} | changes)
    source = PhantomStudySource(0, image_cfg.size, 8)
    return ReportBatchStream(source, Tokenizer.from_dir(directory), image_cfg, phase)


def image_stream(directory):
    image_cfg = ImageConfig.from_dir(directory)
    return ImageBatchStream(PhantomStudySource(0, image_cfg.size, 8), image_cfg, 4, 4)


@pytest.mark.parametrize("make", [pytest.param(report_stream, marks=pytest.mark.drill), image_stream])
def test_a_stream_resumes_at_its_position(checkpoint, make):
    stream = make(checkpoint)
    for _ in range(3):
        stream.next_batch()
    position, expected = stream.position(), [stream.next_batch() for _ in range(4)]
    other = make(checkpoint)
    other.seek(position)
    for batch in expected:
        jax.tree.map(np.testing.assert_array_equal, other.next_batch(), batch)


def test_a_batch_has_studies_of_the_phase_alone(checkpoint):
    stream = report_stream(checkpoint, image_counts=(2,), bare_prompt=True, lengths=(160,))
    for _ in range(3):
        batch = stream.next_batch()
        assert batch.tokens.shape == (4, 160) and batch.pixels.shape[:2] == (4, 2)
        assert bool((batch.target <= batch.mask).all()) and bool(batch.target.any(1).all())


def test_held_out_batches_have_each_study_once(checkpoint):
    stream = report_stream(checkpoint)
    targets = sum(int(batch.target.any(1).sum()) for batch in stream.held_out())
    assert targets == len(stream.source.held_out) == 8


def test_lengths_that_no_study_fits_are_refused(checkpoint):
    with pytest.raises(UserError, match=r"no study fits into \[8\] tokens: raise the lengths .* full_prompt"):
        report_stream(checkpoint, lengths=(8,)).next_batch()


def test_an_index_decides_what_is_learned_from_a_study(checkpoint):
    """A grounded report, a location of one sentence in the frontal image alone, or the report, in the given shares."""
    stream = report_stream(checkpoint, lengths=(600,), max_findings=450, grounded=0.4, located=0.3)
    studies = stream.source.studies(0, 120)
    requests = [stream._encode(i, study).request for i, study in enumerate(studies)]
    tasks = {"report": 0, "grounded": 0, "located": 0}
    for study, (encoded, images) in zip(studies, requests, strict=True):
        prompt = encoded.ids[: encoded.n_prompt]
        written = stream.tokenizer.decode(encoded.ids[encoded.n_prompt :])
        if "<obj>" not in written:
            task, expected = "report", (reporting_prompt(study), study.findings)
        elif written == grounding.write(all_phrases := grounding.reference(study)):
            task, expected = "grounded", (reporting_prompt(study, grounded=True), written)
        else:
            (phrase,) = (one for one in all_phrases if grounding.write([one]) == written)
            task, expected = "located", (phrase_grounding_prompt(phrase.text), written)
            assert phrase.boxes and images == (study.frontal,)
        tasks[task] += 1
        again = stream.tokenizer.encode(*expected)
        assert np.array_equal(again.ids, encoded.ids) and len(prompt) == again.n_prompt
    assert 35 < tasks["grounded"] < 65 and 20 < tasks["located"] < 50 and 20 < tasks["report"] < 50, tasks


def test_studies_without_locations_teach_their_reports(checkpoint):
    stream = report_stream(checkpoint, grounded=0.5, located=0.5)
    study = dataclasses.replace(stream.source.held_out[0], grounded_findings=())
    assert (
        stream._encode(3, study).request.encoded.ids.tolist()
        == stream.tokenizer.encode(reporting_prompt(study), study.findings).ids.tolist()
    )

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
from maira_jax.phantom.pretraining.batch_streams import ImageBatchStream, ReportBatchStream, UpdateStream
from maira_jax.phantom.pretraining.recipe import Task, TaskBatch
from maira_jax.phantom.pretraining.study_source import PhantomStudySource
from tests.helpers.tiny_recipe import FULL_PROMPT


def report_stream(directory, task=None, first=0, **changes):
    """A stream of reports, or of another task's batches of three rows."""
    image_cfg = ImageConfig.from_dir(directory)
    phase = dataclasses.replace(FULL_PROMPT, **{"lengths": (300, 512)} | changes)
    batch = phase.reports if task is None else TaskBatch(task, 3, (650,), 450)
    source = PhantomStudySource(0, image_cfg.size, 8)
    return ReportBatchStream(source, Tokenizer.from_dir(directory), image_cfg, phase, batch, first)


def update_stream(directory):
    """Every update has reports and locations."""
    return UpdateStream([report_stream(directory), report_stream(directory, Task.LOCATION)])


def image_stream(directory):
    image_cfg = ImageConfig.from_dir(directory)
    return ImageBatchStream(PhantomStudySource(0, image_cfg.size, 8), image_cfg, 4)


@pytest.mark.parametrize("make", [pytest.param(update_stream, marks=pytest.mark.drill), image_stream])
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


@pytest.mark.parametrize("task", list(Task))
def test_a_task_has_its_prompt_and_what_is_written(checkpoint, task):
    stream = report_stream(checkpoint, task)
    for index, study in enumerate(stream.source.studies(0, 40)):
        row, phrases = stream._encode(index, study), grounding.reference(study)
        if task == Task.LOCATION and not any(phrase.boxes for phrase in phrases):
            assert row is None
            continue
        encoded, images = row.request
        written = stream.tokenizer.decode(encoded.ids[encoded.n_prompt :])
        if task == Task.LOCATION:
            (phrase,) = (one for one in phrases if grounding.write([one]) == written)
            prompt = phrase_grounding_prompt(phrase.text)
            assert phrase.boxes and images == (study.frontal,)
        else:
            grounded = task == Task.GROUNDED_REPORT
            prompt = reporting_prompt(study, grounded)
            assert written == (grounding.write(phrases) if grounded else study.findings)
        again = stream.tokenizer.encode(prompt, written)
        assert np.array_equal(again.ids, encoded.ids) and again.n_prompt == encoded.n_prompt


def test_a_bare_prompt_keeps_the_sentence_to_locate(checkpoint):
    stream = report_stream(checkpoint, Task.LOCATION, bare_prompt=True)
    for index, study in enumerate(stream.source.studies(0, 8)):
        if row := stream._encode(index, study):
            encoded = row.request.encoded
            (phrase,) = grounding.parse(stream.tokenizer.decode(encoded.ids[encoded.n_prompt :])).phrases
            assert phrase.text in stream.tokenizer.decode(encoded.ids[: encoded.n_prompt])


@pytest.mark.parametrize("task", [Task.GROUNDED_REPORT, Task.LOCATION])
def test_studies_without_locations_teach_their_reports_alone(checkpoint, task):
    study = dataclasses.replace(report_stream(checkpoint).source.held_out[0], grounded_findings=())
    assert report_stream(checkpoint)._encode(3, study) is not None
    assert report_stream(checkpoint, task)._encode(3, study) is None


def test_studies_without_boxes_are_no_batches_of_locations(checkpoint, monkeypatch):
    stream = report_stream(checkpoint, Task.LOCATION)
    bare = [dataclasses.replace(study, grounded_findings=()) for study in stream.source.studies(0, 64)]
    monkeypatch.setattr(stream.source, "studies", lambda start, stop: bare)
    with pytest.raises(UserError, match="no study has boxes and fits into"):
        stream.next_batch()


def test_a_stream_begins_where_it_is_told(checkpoint):
    stream, later = report_stream(checkpoint), report_stream(checkpoint, first=64)
    stream.seek({"next": 64, "waiting": {}})
    jax.tree.map(np.testing.assert_array_equal, later.next_batch(), stream.next_batch())


def test_an_update_has_a_batch_of_each_task(checkpoint):
    reports, locations = update_stream(checkpoint).next_batch()
    assert (len(reports.tokens), len(locations.tokens)) == (4, 3)

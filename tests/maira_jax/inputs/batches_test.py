"""Batches of requests: how they are grouped, filled up and padded."""

import numpy as np
import pytest
from PIL import Image

from maira_jax.errors import UserError
from maira_jax.inputs import batches
from maira_jax.inputs import image as image_module
from maira_jax.inputs.batches import GenerationRequest, assemble, fill_up, padded_length, plan_batches, read_images
from maira_jax.inputs.image import ImageConfig, preprocess
from maira_jax.inputs.tokens import Encoded
from maira_jax.studies.study import Study

CONFIG = ImageConfig(8, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


class Padding:
    """Pads on the right, as `Tokenizer.batch` does."""

    def batch(self, rows, length):
        ids = np.stack([np.pad(row.ids, (0, length - len(row))) for row in rows])
        return ids, ids > 0, ids.astype(np.int8)


def request(length, *images):
    ids = np.arange(1, length + 1, dtype=np.int32)
    return GenerationRequest(Encoded(ids, ids.astype(np.int8), length), images)


def image(seed):
    return np.random.default_rng(seed).integers(0, 255, (16, 12)).astype(np.uint8)


def test_requests_are_grouped_by_length_into_few_shapes(monkeypatch):
    monkeypatch.setattr(batches, "_N_LENGTHS", 3)
    requests = [request(length, *([image(0)] * n)) for length, n in ((5, 1), (9, 0), (8, 1), (17, 2), (3, 0), (1, 0))]
    planned = plan_batches(requests, batch_size=2)
    assert planned == [((0, 2), 8, 1), ((4, 5), 8, 1), ((1,), 16, 1), ((3,), 24, 2)]
    assert plan_batches([], batch_size=2) == []


def test_long_rows_are_padded_to_whole_blocks():
    assert [padded_length(size) for size in (1, 8, 1017, 1024, 1025, 3199)] == [8, 8, 1024, 1024, 1152, 3200]


def test_many_lengths_are_few_shapes():
    sizes = np.random.default_rng(0).integers(1, 5000, 300)
    requests = [request(int(size)) for size in sizes]
    lengths, n_images = batches.buckets(requests)
    assert len(lengths) == 4 and n_images == (0, 0, 0, 0) and max(sizes) <= lengths[-1] < max(sizes) + 128
    assert np.bincount(np.searchsorted(lengths, sizes)).max() < 90  # about a quarter of them


def test_a_short_batch_repeats_its_last_member():
    assert fill_up((3, 1), 4) == [3, 1, 1, 1] and fill_up([3, 1], 2) == [3, 1]


def test_rows_are_padded_in_tokens_and_images(monkeypatch):
    read = []
    monkeypatch.setattr(batches, "preprocess", lambda image, cfg: read.append(1) or preprocess(image, cfg))
    requests = fill_up([request(3, image(1)), request(2), request(4, image(2), image(3))], 5)
    batch = assemble(requests, Padding(), CONFIG, length=6)
    np.testing.assert_array_equal(batch.tokens[0], [1, 2, 3, 0, 0, 0])
    np.testing.assert_array_equal(batch.mask.sum(1), [3, 2, 4, 4, 4])
    assert batch.pixels is not None and batch.pixels.shape == (5, 2, 8, 8, 3) and batch.pixels.dtype == np.float32
    for row, images in enumerate([(image(1),), (), *[(image(2), image(3))] * 3]):
        np.testing.assert_array_equal(batch.pixels[row], read_images(images, 2, CONFIG))
        assert not batch.pixels[row, len(images) :].any()
    assert len(read) == 3 + 7  # the repeated request was read once


def test_images_in_files_are_read_ahead_by_other_processes(tmp_path, monkeypatch):
    files = [tmp_path / f"{seed}.png" for seed in range(3)]
    for seed, path in enumerate(files):
        Image.fromarray(image(seed)).save(path)
    first, second = [request(3, files[0], image(2)), request(2)], [request(4, files[1], files[2]), request(3, files[0])]
    given = [("a", fill_up(first, 3), 6, 2), ("b", second, 4, 2), ("c", [request(2)], 2, 0)]
    expected = [assemble(rows, Padding(), CONFIG, length, n_images) for _, rows, length, n_images in given]
    monkeypatch.setattr(image_module, "read_grey", None)  # in this process alone
    found = dict(batches.assemble_ahead(given, Padding(), CONFIG))
    assert list(found) == ["a", "b", "c"] and found["c"].pixels is None
    for batch, whole in zip(found.values(), expected, strict=True):
        for ours, theirs in zip(batch, whole, strict=True):
            np.testing.assert_array_equal(ours, theirs)
    wrong = [("a", [request(3, tmp_path / "no.png")], 4, 1)]
    with pytest.raises(UserError, match="no.png does not exist"):
        list(batches.assemble_ahead(wrong, Padding(), CONFIG))


class Words:
    """Makes a token of each word of the findings."""

    def encode(self, prompt, findings):
        return request(len(findings.split())).encoded


def test_a_report_that_is_longer_than_the_models_positions_is_refused_by_name():
    study = Study("s1", "p1", image(0))
    assert len(batches.reporting_request(study, Words(), findings="word " * 6144).encoded) == 6144
    with pytest.raises(UserError, match="study s1 has 6,145 tokens with its texts: shorten them to 6,144, or leave"):
        batches.reporting_request(study, Words(), findings="word " * 6145)


def test_without_images_there_are_no_pixels():
    assert assemble([request(3)], Padding(), CONFIG, 4).pixels is None
    padded = assemble([request(3)], Padding(), CONFIG, 4, n_images=2).pixels
    assert padded is not None and padded.shape == (1, 2, 8, 8, 3) and not padded.any()


def test_an_image_that_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        assemble([request(3, tmp_path / "no.png")], Padding(), CONFIG, 4)

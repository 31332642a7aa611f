"""What autoencoders are trained and measured on in benchmarks."""

import json

import numpy as np
import pytest

from launch.benches import recovery, token_streams
from launch.benches.token_streams import ArrayStream
from maira_jax.errors import UserError
from sae import formats


@pytest.fixture
def files(tmp_path):
    """Activations whose first column numbers the tokens, and a label that the second column tells."""
    x = np.random.default_rng(0).normal(size=(400, 8)).astype(np.float32)
    x[:, 0] = np.arange(400)
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "labels.npy", np.stack([x[:, 1] > 0, np.zeros(400, bool)], axis=1))
    return tmp_path


def test_every_pass_takes_each_token_once_in_another_order(files):
    stream = ArrayStream(files / "x.npy", None, batch_size=90, seed=3)
    numbers = stream.batches(0, 8)[..., 0].reshape(2, 360)
    assert [sorted(numbers_of_pass) for numbers_of_pass in numbers.tolist()] == [list(range(360))] * 2
    assert (numbers[0] != numbers[1]).any()
    assert stream.held_out[:, 0].tolist() == list(range(360, 400))


def test_batches_do_not_depend_on_how_many_are_asked_for(files):
    stream = ArrayStream(files / "x.npy", None, batch_size=50, seed=3)
    apart = [stream.batches(first, n) for first, n in ((0, 5), (5, 1), (6, 14))]
    np.testing.assert_array_equal(np.concatenate(apart), stream.batches(0, 20))


def test_probes_read_a_label_where_a_feature_has_it():
    rng = np.random.default_rng(0)
    labels = rng.random((2000, 1)) < 0.3
    features = rng.random((2000, 16)).astype(np.float32)
    assert token_streams.probe_auroc(features, labels)["probe_4"] == pytest.approx(0.5, abs=0.06)
    features[:, 5] += 2 * labels[:, 0]
    assert token_streams.probe_auroc(features, labels) == {"probe_1": 1.0, "probe_4": 1.0}
    with pytest.raises(UserError, match="no label has 20 tokens"):
        token_streams.probe_auroc(features, np.zeros((2000, 1), bool))


def test_files_that_do_not_fit_are_refused(files):
    np.save(files / "few.npy", np.zeros((3, 1), bool))
    (files / "text.npy").write_text("no array")
    with pytest.raises(UserError, match="3 rows for 400 tokens"):
        ArrayStream(files / "x.npy", files / "few.npy", 10, 0)
    with pytest.raises(UserError, match=r"text\.npy cannot be read"):
        ArrayStream(files / "text.npy", None, 10, 0)
    with pytest.raises(UserError, match="give floats"):
        ArrayStream(files / "few.npy", None, 10, 0)


def test_a_run_is_measured_on_real_activations(files, monkeypatch, capsys):
    monkeypatch.setattr(token_streams, "_MIN_TOKENS", 2)
    sizes = ["--n_features=64", "--batch_size=32", "--steps=2", "--active=2", "--seeds=0"]
    given = [f"--source={files / 'x.npy'}", f"--labels={files / 'labels.npy'}", f"--out={files}"]
    recovery.main([*given, "--alone", *sizes])
    run, _, row, *controls = capsys.readouterr().out.splitlines()
    (measured,) = json.loads(run)["tries"]
    assert set(measured) == {"lr", "fvu", "l0", "never", "probe_1", "probe_4"}
    assert f"{measured['fvu']:.4f}" in row
    names = ["principal components", "random directions", "raw dimensions", "shuffled weights"]
    for line, name in zip(controls, names, strict=True):
        assert line.split(maxsplit=2)[2].startswith(name)
    kept = formats.load(files / "ours-2-2-0")
    held_out = np.load(files / "x.npy")[-40:]
    assert np.asarray(kept.encode(held_out) > 0).sum() == pytest.approx(40 * measured["l0"])

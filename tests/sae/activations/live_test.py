"""The running model as a source of activations, and training from it."""

import json
import struct

import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from maira_jax.errors import UserError
from maira_jax.run import files
from sae.activations import batches, live
from sae.activations.store import HELD_OUT, TRAIN, ActivationStore
from sae.training import stage


def test_the_model_on_the_fly_gives_the_stored_activations(config, workdir, monkeypatch):
    """Row by row, and in the shuffled order; other padded shapes sum in another order."""
    monkeypatch.setattr(live, "BUFFER_TOKENS", 400)
    running, stored = live.open_source("model", config, workdir), ActivationStore.open(workdir / "activations")
    assert (running.n_tokens, running.d_model, running.source) == (stored.n_tokens, stored.d_model, stored.source)
    for split in (TRAIN, HELD_OUT):
        np.testing.assert_array_equal(running.rows_of(split).numbers(), stored.rows_of(split).numbers())
    rows = running.rows_of(HELD_OUT).numbers()
    found, expected = (np.concatenate(list(batches.sequential(source, rows, 150))) for source in (running, stored))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    shuffled = batches.ShuffledBatches(running, running.rows_of(TRAIN), 20, 5, 6, 3)
    groups = list(shuffled.iterate(0))
    assert [group.shape for group in groups] == [(5, 20, stored.d_model)] * 6
    every = np.round(stored.read(0, stored.n_tokens)[stored.rows_of(TRAIN).numbers()], 2)
    distances = np.abs(np.concatenate(groups).reshape(-1, 1, stored.d_model)[::25] - every).max(-1).min(1)
    assert distances.max() < 0.01
    # A process computes the studies of its part alone.
    for group, part in zip(groups, shuffled.iterate(0, slice(10, 20)), strict=True):
        np.testing.assert_allclose(part, group[:, 10:], rtol=1e-4, atol=1e-4)
    # A run that is killed inside a buffer reads the same groups again.
    for group, again in zip(groups[2:], shuffled.iterate(2), strict=True):
        np.testing.assert_array_equal(group, again)


def scalars(directory) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard would show of an event folder: the steps and values of each scalar."""
    found: dict[str, list[tuple[int, float]]] = {}
    for path in sorted(directory.iterdir()):
        content = path.read_bytes()
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            event = event_pb2.Event.FromString(content[12 : 12 + length])
            content = content[16 + length :]
            for value in event.summary.value:
                if not value.HasField("histo"):
                    found.setdefault(value.tag, []).append((event.step, value.simple_value))
    return found


def test_training_from_the_model_on_the_fly(config, workdir, tmp_path, monkeypatch):
    monkeypatch.setattr(live, "BUFFER_TOKENS", 400)
    (tmp_path / "model").symlink_to(workdir / "model")
    config = config.copy_and_resolve_references()
    config.sae.update({"expansion": 2, "k": 4})
    short = {
        "steps": 20,
        "batch_size": 32,
        "checkpoint_every": 20,
        "evaluate_every": 10,
        "warmup_steps": 4,
        "decay_start": 16,
    }
    config.train.update(short | {"source": "model", "loss_recovered_studies": 3})
    counts = stage.run(config, tmp_path)
    assert not (tmp_path / "activations").exists()
    measured = files.read_json(tmp_path / "sae" / "metrics.json")
    loss = measured["loss"]
    assert measured["tokens"] == len(ActivationStore.open(workdir / "activations").rows_of(HELD_OUT))
    assert 0 < loss["tokens"] < loss["replaced"] < measured["tokens"]
    assert counts["loss_recovered"] == (loss["ce_zero"] - loss["ce_spliced"]) / (loss["ce_zero"] - loss["ce"])
    shown = scalars(tmp_path / "sae" / "tensorboard")
    lines = [json.loads(line) for line in (tmp_path / "sae" / "log.jsonl").read_text().splitlines()]
    assert [step for step, _ in shown["train/loss"]] == [9, 19]
    np.testing.assert_allclose(
        [value for _, value in shown["train/fvu"]], [lines[9]["fvu"], lines[19]["fvu"]], rtol=1e-6
    )
    np.testing.assert_allclose(shown["train/level_errors/4"][1][1], lines[19]["level_errors"][4], rtol=1e-6)
    halfway = json.loads((tmp_path / "sae" / "held_out.jsonl").read_text())
    np.testing.assert_allclose(shown["held_out/fvu"], [(9, halfway["fvu"]), (20, measured["fvu"])], rtol=1e-6)
    np.testing.assert_allclose(shown["held_out/loss/recovered_zero"], [(20, counts["loss_recovered"])], rtol=1e-6)
    assert stage.run(config, tmp_path) == counts
    with pytest.raises(UserError, match="harvest.token_filter"):
        config.harvest.token_filter = "findings"
        stage.run(config, tmp_path)

"""A trace holds the steps that were asked for, by name."""

import gzip

import jax.numpy as jnp

from maira_jax.run.profile import traced


def test_the_trace_names_its_steps_and_the_feed(tmp_path):
    taken = []
    for item in traced(range(9), tmp_path, 3, "update"):
        taken.append(item)
        jnp.ones(item + 1).sum().block_until_ready()
    assert taken == list(range(9))
    assert list(tmp_path.rglob("*.xplane.pb"))
    (events,) = tmp_path.rglob("*.trace.json.gz")
    text = gzip.decompress(events.read_bytes()).decode()
    assert text.count('"name":"update"') == 3 and text.count('"name":"feed"') == 3


def test_a_loop_that_ends_early_or_is_not_traced(tmp_path):
    assert list(traced(range(3), tmp_path / "early", 5, "update")) == [0, 1, 2]
    assert list((tmp_path / "early").rglob("*.xplane.pb"))
    assert list(traced(range(3), tmp_path / "none", 0, "update")) == [0, 1, 2]
    assert not (tmp_path / "none").exists()

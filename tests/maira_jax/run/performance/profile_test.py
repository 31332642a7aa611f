"""A trace holds the steps that were asked for, by name."""

import jax.numpy as jnp

from maira_jax.run.performance.profile import OFF, StepTrace
from tests.helpers.traces import names_in


def test_the_trace_names_its_steps_and_the_feed(tmp_path):
    taken = []
    for item in StepTrace(tmp_path, 3, "update").over(range(9)):
        taken.append(item)
        jnp.ones(item + 1).sum().block_until_ready()
    assert taken == list(range(9))
    names = names_in(tmp_path)
    assert names["update"] == names["feed"] == 3


def test_a_loop_that_ends_early_or_is_not_traced(tmp_path, capsys):
    assert list(StepTrace(tmp_path / "early", 5, "update").over(range(3))) == [0, 1, 2]
    assert names_in(tmp_path / "early")["update"] == 2
    assert "update: traced 2 of 5 passes" in capsys.readouterr().err
    assert list(StepTrace(tmp_path / "empty", 5, "update").over([])) == []
    assert list(OFF.over(range(3))) == [0, 1, 2]
    assert not (tmp_path / "empty").exists()

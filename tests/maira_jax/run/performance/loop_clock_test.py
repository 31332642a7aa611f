"""Where a loop's time goes, on a clock that the test moves."""

import jax
import jax.numpy as jnp
import pytest

from maira_jax.run.performance import loop_clock
from maira_jax.run.performance.loop_clock import LoopClock


class SetClock:
    """Stands for the module `time`."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> SetClock:
    found = SetClock()
    monkeypatch.setattr(loop_clock, "time", found)
    monkeypatch.setattr(jax, "block_until_ready", lambda result: result)
    return found


def test_waiting_work_and_idleness_are_distinguished(time):
    def inputs():
        time.now += 3  # the loop waits
        yield "first"
        time.now += 2
        yield "second"

    clock, result = LoopClock(), jnp.zeros(())
    for given in clock.feed(inputs()):
        if given == "first":
            dispatched = time.now + 1  # compiles for one second
            time.now += 5
            assert clock.finish(result, dispatched) == 4
        else:
            dispatched = time.now - 3  # while the device worked on the first
            time.now += 7
            assert clock.finish(result, dispatched) == 9  # since the first was ready
    assert (clock.seconds, clock.waited, clock.busy) == (17, 5, 13)
    # Of the 5 seconds the device was idle for 4 at most: it worked on the first while the loop waited for the second.
    assert (
        clock.summary("rows") == "the device had work for 13.0 of 17.0 s (76%), and waited for rows for 4.0 s at most"
    )

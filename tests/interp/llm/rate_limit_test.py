"""Amounts are spread evenly over time."""

import asyncio

import pytest

from interp.llm import rate_limit


class Clock:
    """Time that passes only where somebody waits."""

    def __init__(self, monkeypatch):
        self.now, self.waits = 100.0, []
        monkeypatch.setattr(rate_limit.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(rate_limit.asyncio, "sleep", self.sleep)

    async def sleep(self, seconds):
        self.waits.append(seconds)
        self.now += seconds


def test_rates_are_kept_and_corrected(monkeypatch):
    clock = Clock(monkeypatch)

    async def take(limit, amounts):
        begin = clock.now
        for amount in amounts:
            await limit.take(amount)
        return clock.now - begin

    # A second's worth is free, so that 60 a minute are 1 + 10 in ten seconds.
    assert asyncio.run(take(rate_limit.RateLimiter(60.0), [1] * 12)) == pytest.approx(10.0)
    assert asyncio.run(take(rate_limit.RateLimiter(6000.0), [1000] * 4)) == pytest.approx(29.0)
    assert asyncio.run(take(rate_limit.RateLimiter(0.0), [1e9] * 4)) == 0.0
    limit = rate_limit.RateLimiter(6000.0)
    asyncio.run(take(limit, [1000]))
    limit.correct(-900)
    assert asyncio.run(take(limit, [1000])) == pytest.approx(0.0)

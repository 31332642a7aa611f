"""How fast a server is asked."""

import asyncio
import time


class RateLimiter:
    """Spreads amounts evenly over time: a token bucket that holds one second's worth.

    Args:
      per_minute: the amount that may be used in a minute; 0 for no limit.
    """

    def __init__(self, per_minute: float):
        self._seconds_each = 60.0 / per_minute if per_minute else 0.0
        self._free_at = 0.0  # when all that was taken so far is paid for

    async def take(self, amount: float) -> None:
        """Waits until `amount` may be used, in the order of the calls."""
        if not self._seconds_each:
            return
        now = time.monotonic()
        self._free_at = max(self._free_at, now - 1.0) + amount * self._seconds_each
        await asyncio.sleep(max(self._free_at - amount * self._seconds_each - now, 0.0))

    def correct(self, amount: float) -> None:
        """Takes `amount` more, or gives it back if negative, once the true amount is known."""
        self._free_at += amount * self._seconds_each

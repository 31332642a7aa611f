"""How fast a server is asked, and how long to wait after a refusal."""

import asyncio
import email.utils
import random
import time
from collections.abc import Mapping

_LONGEST_WAIT_S = 60.0
_LONGEST_RETRY_AFTER_S = 600.0


class Pace:
    """Spreads amounts evenly over time: a token bucket that holds one second's worth.

    Args:
      per_minute: how much; 0 for no limit.
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
        """Takes so much more, or gives back if negative, after the true amount is known."""
        self._free_at += amount * self._seconds_each


def wait_s(failures: int, headers: Mapping[str, str] | None) -> float:
    """Seconds to wait after the n-th failure of a request: what the server says, else twice as long each time.

    Args:
      failures: of this request so far, from 1.
      headers: of the server's refusal; None where there was none.
    """
    wait = min(0.5 * 2.0 ** (failures - 1), _LONGEST_WAIT_S) * random.uniform(0.5, 1.0)
    said = _retry_after(headers) if headers is not None else None
    # Jitter on top of what was said, or all that were refused together come back together.
    return wait if said is None else min(said, _LONGEST_RETRY_AFTER_S) + random.uniform(0.0, min(wait, 1.0))


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds of `Retry-After` (a number or a date) or OpenAI's `retry-after-ms`."""
    try:
        if "retry-after-ms" in headers:
            return max(float(headers["retry-after-ms"]) / 1000, 0.0)
        value = headers["retry-after"]
    except (KeyError, ValueError):
        return None
    try:
        return max(float(value), 0.0)
    except ValueError:
        pass
    try:
        return max(email.utils.parsedate_to_datetime(value).timestamp() - time.time(), 0.0)
    except (ValueError, TypeError):
        return None

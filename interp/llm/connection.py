"""The connection to the server, and which of its refusals end the work."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable

import httpx2
import openai

from interp.llm import egress
from interp.llm.section import JudgeSection
from maira_jax.errors import UserError

KEY = "OPENAI_API_KEY"
TRANSIENT = (408, 409, 429)  # refusals that the openai library tries again, as it does those from 500 on
NO_SCHEMA = (400, 422, 501)  # what servers answer that cannot hold answers to a schema
_NO_QUOTA = "insufficient_quota"
# A longer Retry-After makes the openai library give the request up; so much of a longer one is waited for here.
_LIBRARY_WAIT_S, _MAX_WAIT_S = 60.0, 600.0


@contextlib.asynccontextmanager
async def connect(
    section: JudgeSection, endpoint: egress.Endpoint, before_retry: Callable[[], Awaitable[None]] | None = None
) -> AsyncIterator[openai.AsyncOpenAI]:
    """A connection to one server, and to nothing else. Requests that fail for a time are sent again, with back-off.

    Args:
      section: the section that names the server.
      endpoint: the server's checked address.
      before_retry: is awaited in the task of the request before the library sends it again.

    Raises:
      UserError: nobody listens there, or the key cannot be sent.
    """
    key = api_key() or "none"  # one is asked for even by servers that need none

    async def count_retry(request: httpx2.Request) -> None:
        if before_retry is not None and int(request.headers.get("x-stainless-retry-count", 0)):
            await before_retry()

    address = await egress.reach(endpoint)
    http = openai.DefaultAsyncHttpxClient(
        transport=egress.GuardedTransport(endpoint, address, section.concurrency),
        trust_env=False,
        follow_redirects=False,
        timeout=httpx2.Timeout(section.timeout, pool=None),
        event_hooks={"request": [count_retry], "response": [_forbid_useless_retries, _wait_long]},
    )
    async with openai.AsyncOpenAI(
        base_url=section.base_url, api_key=key, max_retries=section.attempts - 1, http_client=http
    ) as server:
        yield server


def api_key() -> str:
    """The key that the environment gives; empty where it gives none.

    Raises:
      UserError: it holds what no header of a request can hold.
    """
    key = os.environ.get(KEY, "").strip()
    if key.isascii() and key.isprintable():
        return key
    raise UserError(
        f"the environment variable {KEY} holds a line break or another character that no key has: set it to the key "
        "alone"
    )


async def _forbid_useless_retries(response: httpx2.Response) -> None:
    """Tells the library not to repeat two refusals that look transient: a spent quota, and a schema not implemented."""
    useless = response.status_code == 501
    if response.status_code == 429:
        useless = _NO_QUOTA.encode() in await response.aread()
    if useless:
        response.headers["x-should-retry"] = "false"


async def _wait_long(response: httpx2.Response) -> None:
    """Waits as long as a server asks for where the library would not, and asks the library for a short wait instead."""
    with contextlib.suppress(ValueError):  # the header may be a date
        seconds = float(response.headers.get("retry-after", 0))
        if seconds > _LIBRARY_WAIT_S:
            await asyncio.sleep(min(seconds, _MAX_WAIT_S))
            response.headers["retry-after"] = "1"


def fatal(error: openai.APIStatusError, section: JudgeSection) -> UserError | None:
    """The end of the work, if no other request could fare better than the refused one."""
    status, where = error.status_code, f"the server at {section.base_url}"
    if status in (401, 403):
        return UserError(f"{where} refuses the key (HTTP {status}): set the environment variable {KEY}")
    if status == 404:
        return UserError(f"{where} does not know its path or the model {section.model!r} (HTTP 404): correct them")
    if status < 400:
        return UserError(f"{where} redirects (HTTP {status}), which is not followed: correct judge.base_url")
    if error.code == _NO_QUOTA:
        return UserError(f"{where} says that the quota is used up: all answers are kept, run again when there is more")
    return None

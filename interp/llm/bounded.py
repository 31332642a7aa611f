"""Bounds on what a server may send back: size, time, compression, and counts of tokens that can be true."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from typing import Any

import httpx2

# An answer of the chat API, and a file of a batch's answers.
MAX_ANSWER_BYTES, MAX_FILE_BYTES = 16 * 2**20, 256 * 2**20
# A file of answers may take this many times as long as an answer.
_FILE_TIMES = 10
_MAX_TOKENS = 10**9  # that a server may say an answer to have


class RefusedAnswer(httpx2.RemoteProtocolError):
    """An answer that is not read to its end; the text says why."""


class BoundedStream(httpx2.AsyncByteStream):
    """The body of a response, up to a size and a moment.

    Args:
      stream: the body as it comes.
      max_bytes: the most that it may have.
      deadline: the moment until which it may come, by the event loop's clock.
    """

    def __init__(self, stream: httpx2.AsyncByteStream, max_bytes: int, deadline: float):
        self._stream, self._max_bytes, self._deadline = stream, max_bytes, deadline

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """The parts of the body.

        Raises:
          RefusedAnswer: it is too large.
          ReadTimeout: it comes too slowly.
        """
        n_bytes, parts = 0, aiter(self._stream)
        while True:
            async with in_time(self._deadline):
                part = await anext(parts, None)
            if part is None:
                return
            n_bytes += len(part)
            if n_bytes > self._max_bytes:
                raise too_large(self._max_bytes)
            yield part

    async def aclose(self) -> None:
        await self._stream.aclose()


async def bounded(request: httpx2.Request, transport: httpx2.AsyncBaseTransport) -> httpx2.Response:
    """Sends a request, whose own timeout is that of the whole answer and not of each part of it.

    Raises:
      RefusedAnswer: the answer says that it is too large, or is compressed, which was not asked for.
      ReadTimeout: its head does not come in time.
    """
    is_file = "/files/" in request.url.path
    max_bytes = MAX_FILE_BYTES if is_file else MAX_ANSWER_BYTES
    timeout = request.extensions["timeout"]["read"] * (_FILE_TIMES if is_file else 1)
    deadline = asyncio.get_running_loop().time() + timeout
    request.headers["accept-encoding"] = "identity"
    async with in_time(deadline):
        response = await transport.handle_async_request(request)
    length = response.headers.get("content-length", "")
    encoding = response.headers.get("content-encoding", "identity")
    if encoding != "identity" or (length.isascii() and length.isdigit() and int(length[:20]) > max_bytes):
        await response.aclose()
        raise (
            RefusedAnswer("it is compressed, which was not asked for")
            if encoding != "identity"
            else too_large(max_bytes)
        )
    assert isinstance(response.stream, httpx2.AsyncByteStream)
    response.stream = BoundedStream(response.stream, max_bytes, deadline)
    return response


@contextlib.asynccontextmanager
async def in_time(deadline: float) -> AsyncIterator[None]:
    """Lets what is awaited within the context take until `deadline`.

    Raises:
      ReadTimeout: it takes longer.
    """
    try:
        async with asyncio.timeout_at(deadline):
            yield
    except TimeoutError as error:
        raise httpx2.ReadTimeout("the answer did not end in time") from error


def too_large(max_bytes: int) -> RefusedAnswer:
    """The refusal of an answer of more than `max_bytes`."""
    return RefusedAnswer(f"it is larger than {max_bytes // 2**20} MiB")


def counted(usage: Any, name: str) -> int | None:
    """A count of tokens in what a server says of its usage; None if there is none that can be true."""
    count = usage.get(name) if isinstance(usage, Mapping) else None
    if isinstance(count, int) and not isinstance(count, bool) and 0 <= count <= _MAX_TOKENS:
        return count
    return None

"""Asks a server request by request, many at a time, each until it is answered."""

import asyncio
import contextlib
import contextvars
import json
from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import Any

import httpx2
import openai

from interp.llm import egress
from interp.llm.bounded import RefusedAnswer, counted
from interp.llm.connection import NO_SCHEMA, connect, fatal
from interp.llm.ledger import TYPICAL_ANSWER, UNUSABLE, AnswerLedger, ChatReply, usable
from interp.llm.rate_limit import RateLimiter
from interp.llm.requests import ChatRequest, message_of
from maira_jax.errors import UserError
from maira_jax.run.progress import progress

_MAX_BACK_OFF_S = 8.0  # between tries of what came back malformed, as the openai library's between others
# Tokens that the request of a task is expected to use, in and out; tries that the library repeats count again.
_EXPECTED_TOKENS: contextvars.ContextVar[float] = contextvars.ContextVar("expected_tokens")


def answers(
    ledger: AnswerLedger, endpoint: egress.Endpoint, requests: Iterable[ChatRequest], description: str
) -> Iterator[ChatReply | None]:
    """Answers requests in their order, read as there is room for them; see `interp.llm.client.ChatClient.answer`.

    Nothing moves between two steps of the iterator, so the caller must not stay away for longer than the server waits.
    """
    # What was asked and not yet given out: the request, its key, and the task that asks it, if there is need for one.
    window: deque[tuple[ChatRequest, str, asyncio.Task[None] | None]] = deque()
    with asyncio.Runner() as runner, progress(unit="answers", desc=f"{description}: ask") as bar:
        sender = _LiveSender(ledger, endpoint)

        def first() -> ChatReply | None:
            request, key, task = window.popleft()
            if task is not None:
                task.result()  # raises what ended the work
            bar.set_postfix_str(ledger.summary(), refresh=False)
            bar.update(1)
            return ledger.reply(request, key)

        try:
            for request in requests:
                key = ledger.key(request)
                # The same question may come twice; the second needs nothing but the answer to the first.
                task = sender.tasks.get(key)
                if task is None and not ledger.is_resolved(request, key):
                    task = runner.run(sender.start(request, key))
                window.append((request, key, task))
                while window and (window[0][2] is None or window[0][2].done()):
                    yield first()
            while window:
                if (task := window[0][2]) is not None:
                    runner.run(sender.finished(task))
                yield first()
        finally:
            runner.run(sender.close())


class _Failed(Exception):
    """A request that stays without an answer; the text says why."""


class _LiveSender:
    """Asks at most `judge.concurrency` requests at a time; the connection is made for the first of them.

    Attributes:
      tasks: key -> the task of a request that is under way.
    """

    def __init__(self, ledger: AnswerLedger, endpoint: egress.Endpoint):
        section = ledger.section
        self.tasks: dict[str, asyncio.Task[None]] = {}
        self._ledger, self._section, self._endpoint = ledger, section, endpoint
        self._slots = asyncio.Semaphore(section.concurrency)
        self._error: BaseException | None = None  # what ended the work
        self._stack = contextlib.AsyncExitStack()
        self._connecting = asyncio.Lock()
        self._server: openai.AsyncOpenAI | None = None
        self._requests, self._tokens = RateLimiter(section.requests_per_minute), RateLimiter(section.tokens_per_minute)
        self._n_paying, self._reserved = 0, 0.0  # requests under way, and US dollars that they may cost
        self._released = asyncio.Condition()

    async def start(self, request: ChatRequest, key: str) -> asyncio.Task[None]:
        """Begins to ask a request as soon as fewer than `judge.concurrency` are under way.

        Raises:
          UserError: no request could fare better than one that failed.
        """
        await self._slots.acquire()
        if self._error is not None:
            raise self._error
        task = self.tasks[key] = asyncio.create_task(self._resolve(request, key))

        def end(task: asyncio.Task[None]) -> None:
            del self.tasks[key]
            self._slots.release()
            if not task.cancelled() and task.exception() is not None:
                self._error = self._error or task.exception()

        task.add_done_callback(end)
        return task

    async def finished(self, task: asyncio.Task[None]) -> None:
        """Waits for a task.

        Raises:
          UserError: no request could fare better than one that failed.
        """
        await asyncio.wait([task])
        if self._error is not None:
            raise self._error

    async def close(self) -> None:
        """Ends what is under way, and the connection."""
        for task in (under_way := list(self.tasks.values())):
            task.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)
        await self._stack.aclose()

    async def _resolve(self, request: ChatRequest, key: str) -> None:
        """Asks until there is a usable answer in the cache, or until the request has failed.

        Raises:
          UserError: no other request could fare better.
        """
        for attempt in range(len(self._ledger.cache.get(key)), self._section.attempts):
            try:
                async with self._budget(request):
                    text, usage = await self._limited(request, attempt)
                    answer = self._ledger.record(request, key, text, usage)
            except _Failed as error:
                return self._ledger.fail(key, str(error))
            if usable(request, answer) is not None:
                return self._ledger.succeed()
        return self._ledger.fail(key, UNUSABLE)

    @contextlib.asynccontextmanager
    async def _budget(self, request: ChatRequest) -> AsyncIterator[None]:
        """Holds back what the request may cost; waits for others to end where that is too much."""
        if self._section.max_cost is None:
            yield
            return
        cost, max_cost = self._ledger.worst_cost(request), self._section.max_cost

        def fits() -> bool:
            return self._ledger.cache.totals.cost + self._reserved + cost <= max_cost

        async with self._released:
            await self._released.wait_for(lambda: fits() or not self._n_paying)
            if not fits():
                raise self._ledger.budget_spent()
            self._n_paying, self._reserved = self._n_paying + 1, self._reserved + cost
        try:
            yield
        finally:
            async with self._released:
                self._n_paying, self._reserved = self._n_paying - 1, self._reserved - cost
                self._released.notify_all()

    async def _limited(self, request: ChatRequest, attempt: int) -> tuple[str, Any]:
        """Message and usage of one answer, within the rates."""
        expected = self._ledger.tokens(request) + TYPICAL_ANSWER
        _EXPECTED_TOKENS.set(expected)
        await self._take_rates()
        text, usage = await self._post(request, attempt)
        total = counted(usage, "total_tokens")
        if total:
            self._tokens.correct(total - expected)
        return text, usage

    async def _take_rates(self) -> None:
        """Waits until the rates allow one more try of the request of this task."""
        await self._requests.take(1)
        await self._tokens.take(_EXPECTED_TOKENS.get())

    async def _post(self, request: ChatRequest, attempt: int) -> tuple[str, Any]:
        """The same, with a schema if the server knows schemas; the first answer tells."""
        body = self._ledger.body(request, attempt)
        structured = "response_format" in body
        try:
            try:
                answer = await self._send(body)
            except openai.APIStatusError as error:
                if not structured or self._ledger.structured is not None or error.status_code not in NO_SCHEMA:
                    raise
                del body["response_format"]
                structured = False
                answer = await self._send(body)
        except openai.APIStatusError as error:
            end = fatal(error, self._section)
            if end is not None:
                raise end from error
            verb = "failed" if error.status_code == 429 or error.status_code >= 500 else "refused it"
            raise _Failed(f"the server {verb} (HTTP {error.status_code})") from error
        if self._ledger.structured is None:
            self._ledger.structured = structured
        return answer

    async def _send(self, body: dict[str, Any]) -> tuple[str, Any]:
        """Message and usage of what comes back; asks again where that is no chat completion."""
        server = await self._connected()
        for attempt in range(self._section.attempts):
            try:
                # Without the library's models of requests and responses, which cost more time than all the rest.
                response = await server.post("/chat/completions", cast_to=httpx2.Response, body=body)
                answer = json.loads(response.content)
                return message_of(answer), answer.get("usage")
            except openai.APIConnectionError as error:
                if isinstance(error.__cause__, UserError):
                    raise error.__cause__ from None
                await egress.reach(self._endpoint)
                if isinstance(error.__cause__, RefusedAnswer):
                    raise _Failed(f"its answer was not read: {error.__cause__}") from error
                late = isinstance(error, openai.APITimeoutError)
                reason = "the server did not answer in time" if late else "the connection broke"
                raise _Failed(reason) from error
            except (ValueError, RecursionError):
                await asyncio.sleep(min(0.5 * 2**attempt, _MAX_BACK_OFF_S))
                await self._take_rates()
        raise _Failed("what came back was no chat completion")

    async def _connected(self) -> openai.AsyncOpenAI:
        async with self._connecting:
            if self._server is None:
                self._server = await self._stack.enter_async_context(
                    connect(self._section, self._endpoint, self._take_rates)
                )
        return self._server

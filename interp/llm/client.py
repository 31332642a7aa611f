"""Asks a language model behind an OpenAI-compatible server: many requests at a time, each until it is answered.

Every answer is kept in a `Cache` before anything is done with it. A request that fails is asked again; one that fails
for good is counted and its reason kept, and the others go on. The work stops, and keeps what it has, where no further
request can succeed: a wrong key, an unknown model, a server that has gone, a spent budget.
"""

import asyncio
import contextlib
import dataclasses
import json
import os
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx2
import openai

from interp.llm import egress
from interp.llm.answer_cache import Answer, Cache
from interp.llm.rate_limit import Pace, wait_s
from interp.llm.requests import Request
from maira_jax.errors import UserError
from maira_jax.run.progress import progress

KEY = "OPENAI_API_KEY"
UNUSABLE = "its answers did not have the form that was asked for"
_CHUNK, _CHUNK_CHARACTERS = 64, 1 << 20  # requests that are rendered together, and their size
# Answers without a limit of their own are expected, and paid in advance, as this long.
_MAX_TOKENS = 1024
# An answer that cannot be used is asked for again with some randomness: at 0 it would be the same.
_RETRY_TEMPERATURE = 0.7
_MOST_FAILURES = 20  # requests that fail one after the other, without an answer in between, before the work stops
TYPICAL_ANSWER = 70  # tokens, of a label and two sentences or of five numbered answers
PASSING = (408, 409, 425, 429)  # refusals that may pass, besides those from 500 on
NO_SCHEMA = (400, 422, 501)  # what servers answer that cannot hold answers to a schema


@dataclasses.dataclass(frozen=True)
class ClientConfig:
    """Fields of the `judge` section; what they mean stands in configs/phantom.py."""

    base_url: str
    model: str
    allow_remote: bool
    parameters: Mapping[str, Any]
    attempts: int
    concurrency: int
    requests_per_minute: float
    tokens_per_minute: float
    timeout: float
    price_in: float
    price_out: float
    max_cost: float | None

    def cost(self, tokens_in: float, tokens_out: float) -> float:
        """US dollars."""
        return (tokens_in * self.price_in + tokens_out * self.price_out) / 1e6

    @property
    def max_tokens(self) -> int:
        """The longest answer."""
        return int(self.parameters.get("max_completion_tokens") or self.parameters.get("max_tokens") or _MAX_TOKENS)


class Client:
    """See the module.

    Attributes:
      cfg: how to ask.
      endpoint: whom.
      folder: of the cache.
      answered: requests that the server answered in this process.
      structured: whether the server holds answers to a JSON schema, once that is known.
      given_up: reasons for which requests stayed without an answer in this process, and how often.

    Args:
      cfg: see there.
      path: of the cache.

    Raises:
      UserError: the server is a remote one that is not allowed.
    """

    def __init__(self, cfg: ClientConfig, path: Path):
        self.cfg = cfg
        self.endpoint = egress.check(cfg.base_url, cfg.allow_remote)
        self.given_up: Counter[str] = Counter()
        self.answered = 0
        self.folder = path.parent
        self._path = path
        self._cache: Cache | None = None
        self._failed: set[str] = set()
        self.structured: bool | None = None
        self._failed_in_a_row = 0
        self._seen = Counter(tokens=1, guess=1)  # of answered requests: what the server counted, and what was guessed

    @property
    def cache(self) -> Cache:
        """Opened when it is first needed, so that nothing is written by a stage that is refused."""
        if self._cache is None:
            self._cache = Cache(self._path)
        return self._cache

    def close(self) -> None:
        """Lets another process have the cache."""
        if self._cache is not None:
            self._cache.close()
            self._cache = None

    def key(self, request: Request) -> str:
        """Of the cache."""
        return request.key(self.cfg.model, self.cfg.parameters)

    def answer(self, request: Request) -> tuple[Any, float] | None:
        """The usable answer that the cache holds and the cost of all answers to the request; None if it has none."""
        answers = self.cache.get(self.key(request))
        usable = _usable(request, answers)
        return None if usable is None else (usable, sum(answer.cost for answer in answers))

    def is_settled(self, request: Request, key: str) -> bool:
        """Whether there is nothing to ask: it has a usable answer, or as many others as may be tried, or has failed."""
        if key in self._failed:
            return True
        answers = self.cache.get(key)
        if _usable(request, answers) is None and len(answers) < self.cfg.attempts:
            return False
        if _usable(request, answers) is None:
            self._note_failure(key, UNUSABLE)
        return True

    def body(self, request: Request, attempt: int) -> dict[str, Any]:
        """What is sent, after `attempt` answers that could not be used."""
        body = {"model": self.cfg.model, "messages": request.messages, **self.cfg.parameters}
        if attempt and "temperature" in body:
            body["temperature"] = max(body["temperature"], _RETRY_TEMPERATURE)
        if self.structured is not False:
            body["response_format"] = request.response_format
        return body

    def keep(self, request: Request, key: str, attempt: int, text: str, usage: Mapping[str, Any] | None) -> Answer:
        """Puts an answer into the cache; what the server did not count is guessed.

        Args:
          request, key: what was asked.
          attempt: how many answers there were before.
          text: the message.
          usage: of the chat API.
        """
        # An answer that was cut off may end with half a character, which no file can hold.
        text = text.encode(errors="replace").decode()
        usage = usage or {}
        tokens_in = int(usage.get("prompt_tokens") or self.tokens(request))
        tokens_out = int(usage.get("completion_tokens") or len(text) // 4)
        answer = Answer(text, tokens_in, tokens_out, self.cfg.cost(tokens_in, tokens_out))
        self.cache.add(key, attempt, self.cfg.model, request.stored(), answer)
        self._seen.update(tokens=tokens_in, guess=request.tokens)
        self.answered += 1
        self._failed_in_a_row = 0
        return answer

    def tokens(self, request: Request) -> int:
        """About how many tokens a request has: guessed from its length, corrected by what the server counted so far."""
        return int(request.tokens * self._seen["tokens"] / self._seen["guess"])

    def worst_cost(self, request: Request) -> float:
        """US dollars that a request may cost, with an allowance for what is not known of its tokens."""
        return self.cfg.cost(1.2 * self.tokens(request), self.cfg.max_tokens)

    def give_up(self, key: str, reason: str) -> None:
        """Notes that a request stays without an answer.

        Raises:
          UserError: too many do, one after the other.
        """
        self._note_failure(key, reason)
        self._failed_in_a_row += 1
        if self._failed_in_a_row >= _MOST_FAILURES:
            raise UserError(
                f"{_MOST_FAILURES} requests to {self.cfg.base_url} failed one after the other, the last because "
                f"{reason}: mend that and run again, all answers are kept"
            )

    def _note_failure(self, key: str, reason: str) -> None:
        if key not in self._failed:
            self._failed.add(key)
            self.given_up[reason] += 1

    def budget_spent(self) -> UserError:
        """The end of a run that may not spend more."""
        return UserError(
            f"judge.max_cost of ${self.cfg.max_cost:.2f} is used up (${self.cache.totals.cost:.2f} spent): "
            "all answers are kept, run again with a higher --max_cost to go on"
        )

    def ask(self, what: str, groups: Iterable[Sequence[Request]], n_groups: int) -> None:
        """Asks everything that the cache has no answer to.

        Args:
          what: for the progress bar.
          groups: requests, a group a feature; read as they are needed.
          n_groups: how many.

        Raises:
          UserError: the work cannot go on; what was answered is kept.
        """
        with progress(total=n_groups, unit="features", desc=f"interpret: ask to {what}") as bar:
            try:
                asyncio.run(self._ask_all(groups, bar))
            except* UserError as errors:
                raise _first(errors) from None

    async def _ask_all(self, groups: Iterable[Sequence[Request]], bar: Any) -> None:
        queue: asyncio.Queue[tuple[Request, str, list[int]] | None] = asyncio.Queue(maxsize=2 * _CHUNK)
        sender = _Sender(self)
        under_way: set[str] = set()

        def finish(left: list[int]) -> None:
            left[0] -= 1
            if not left[0]:
                bar.set_postfix_str(self._postfix(), refresh=False)
                bar.update(1)

        async def produce() -> None:
            chunks = _chunks(groups)
            # Rendered in a thread: reading exemplars must not keep answers waiting.
            while (chunk := await asyncio.to_thread(next, chunks, None)) is not None:
                for group in chunk:
                    left = [1]  # of the group, and this loop itself
                    for request in group:
                        key = self.key(request)
                        # The same question may come from two features; the second needs nothing but the answer.
                        if key not in under_way and not self.is_settled(request, key):
                            under_way.add(key)
                            left[0] += 1
                            await queue.put((request, key, left))
                    finish(left)
            for _ in range(self.cfg.concurrency):
                await queue.put(None)

        async def work() -> None:
            while (item := await queue.get()) is not None:
                request, key, left = item
                await sender.settle(request, key)
                under_way.discard(key)
                finish(left)

        async with contextlib.aclosing(sender), asyncio.TaskGroup() as tasks:
            tasks.create_task(produce())
            for _ in range(self.cfg.concurrency):
                tasks.create_task(work())

    def _postfix(self) -> str:
        given_up = self.given_up.total()
        return f"{self.answered} answers, ${self.cache.totals.cost:.2f}" + (f", {given_up} failed" if given_up else "")


def _usable(request: Request, answers: Sequence[Answer]) -> Any:
    for answer in answers:
        with contextlib.suppress(ValueError):
            return request.read(answer.text)
    return None


def _first(errors: BaseExceptionGroup[UserError]) -> UserError:
    """One error of a group of tasks that failed together."""
    error = errors.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error


def _chunks(groups: Iterable[Sequence[Request]]) -> Iterator[list[Sequence[Request]]]:
    """Groups, a few at a time; bounds the memory that pictures take."""
    chunk: list[Sequence[Request]] = []
    size = 0
    for group in groups:
        chunk.append(group)
        size += 1 + sum(request.size // _CHUNK_CHARACTERS * _CHUNK + 1 for request in group)
        if size >= _CHUNK:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


@contextlib.asynccontextmanager
async def connect(client: Client) -> AsyncIterator[openai.AsyncOpenAI]:
    """A connection to the client's server, and to nothing else.

    Raises:
      UserError: nobody listens there.
    """
    cfg = client.cfg
    address = await egress.reach(client.endpoint)
    transport = egress.GuardedTransport(client.endpoint, address, cfg.concurrency)
    http = openai.DefaultAsyncHttpxClient(
        transport=transport, trust_env=False, follow_redirects=False, timeout=httpx2.Timeout(cfg.timeout, pool=None)
    )
    # A key is asked for even by servers that want none.
    key = os.environ.get(KEY) or "none"
    async with openai.AsyncOpenAI(base_url=cfg.base_url, api_key=key, max_retries=0, http_client=http) as server:
        yield server


def fatal(error: openai.APIStatusError, client: Client) -> UserError | None:
    """The end of the work, if no other request could fare better than the refused one."""
    status, where = error.status_code, f"the server at {client.cfg.base_url}"
    if status in (401, 403):
        return UserError(f"{where} refuses the key (HTTP {status}): set the environment variable {KEY}")
    if status == 404:
        return UserError(f"{where} does not know its path or the model {client.cfg.model!r} (HTTP 404): correct them")
    if status < 400:
        return UserError(f"{where} redirects (HTTP {status}), which is not followed: correct judge.base_url")
    if error.code == "insufficient_quota":
        return UserError(f"{where} says that the quota is used up: all answers are kept, run again when there is more")
    return None


class _Again(Exception):
    """A failure that may pass; the refusal's headers, if there was an answer."""

    def __init__(self, reason: str, headers: Mapping[str, str] | None = None):
        super().__init__(reason)
        self.headers = headers


class _Refused(Exception):
    """A failure that will not pass; the text says why."""


class _Sender:
    """Sends the requests of one `Client.ask`; the connection is made for the first of them."""

    def __init__(self, client: Client):
        self._client, self._cfg = client, client.cfg
        self._stack = contextlib.AsyncExitStack()
        self._connecting = asyncio.Lock()
        self._server: openai.AsyncOpenAI | None = None
        self._requests, self._tokens = Pace(self._cfg.requests_per_minute), Pace(self._cfg.tokens_per_minute)
        self._under_way, self._reserved = 0, 0.0  # requests, and US dollars that they may cost
        self._released = asyncio.Condition()

    async def aclose(self) -> None:
        await self._stack.aclose()

    async def settle(self, request: Request, key: str) -> None:
        """Asks until there is a usable answer in the cache, or until it is given up.

        Raises:
          UserError: no other request could fare better.
        """
        attempt, failures = len(self._client.cache.get(key)), 0
        while attempt < self._cfg.attempts:
            try:
                answer = await self._once(request, key, attempt)
            except _Refused as error:
                return self._client.give_up(key, str(error))
            except _Again as error:
                failures += 1
                if failures >= self._cfg.attempts:
                    await egress.reach(self._client.endpoint)
                    return self._client.give_up(key, str(error))
                await asyncio.sleep(wait_s(failures, error.headers))
                continue
            attempt += 1
            if _usable(request, [answer]) is not None:
                return None
        return self._client.give_up(key, UNUSABLE)

    async def _once(self, request: Request, key: str, attempt: int) -> Answer:
        """One try, within the budget and the rates; its answer is kept, usable or not."""
        async with self._budget(request):
            expected = self._client.tokens(request) + TYPICAL_ANSWER
            await self._requests.take(1)
            await self._tokens.take(expected)
            text, usage = await self._post(request, attempt)
            if usage and usage.get("total_tokens"):
                self._tokens.correct(usage["total_tokens"] - expected)
            return self._client.keep(request, key, attempt, text, usage)

    @contextlib.asynccontextmanager
    async def _budget(self, request: Request) -> AsyncIterator[None]:
        """Holds back what the request may cost; waits for others to end where that is too much."""
        if self._cfg.max_cost is None:
            yield
            return
        cost = self._client.worst_cost(request)

        def fits() -> bool:
            return self._client.cache.totals.cost + self._reserved + cost <= (self._cfg.max_cost or 0.0)

        async with self._released:
            await self._released.wait_for(lambda: fits() or not self._under_way)
            if not fits():
                raise self._client.budget_spent()
            self._under_way, self._reserved = self._under_way + 1, self._reserved + cost
        try:
            yield
        finally:
            async with self._released:
                self._under_way, self._reserved = self._under_way - 1, self._reserved - cost
                self._released.notify_all()

    async def _post(self, request: Request, attempt: int) -> tuple[str, Mapping[str, Any] | None]:
        body = self._client.body(request, attempt)
        structured = "response_format" in body
        try:
            answer = await self._send(body)
        except openai.APIStatusError as error:
            if structured and self._client.structured is None and error.status_code in NO_SCHEMA:
                del body["response_format"]
                structured = False
                try:
                    answer = await self._send(body)
                except openai.APIStatusError as second:
                    raise self._refusal(second) from second
            else:
                raise self._refusal(error) from error
        if self._client.structured is None:
            self._client.structured = structured
        return answer

    async def _send(self, body: dict[str, Any]) -> tuple[str, Mapping[str, Any] | None]:
        server = await self._connected()
        try:
            # Without the client's models of requests and responses, which cost more time than all the rest.
            response = await server.post("/chat/completions", cast_to=httpx2.Response, body=body)
            answer = json.loads(response.content)
            text = answer["choices"][0]["message"].get("content") or ""
            return str(text), answer.get("usage")
        except openai.APITimeoutError as error:
            raise _Again("the server did not answer in time") from error
        except openai.APIConnectionError as error:
            if isinstance(error.__cause__, UserError):
                raise error.__cause__ from None
            raise _Again("the connection broke") from error
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise _Again("what came back was no chat completion") from error

    async def _connected(self) -> openai.AsyncOpenAI:
        async with self._connecting:
            if self._server is None:
                self._server = await self._stack.enter_async_context(connect(self._client))
        return self._server

    def _refusal(self, error: openai.APIStatusError) -> Exception:
        end = fatal(error, self._client)
        if end is not None:
            return end
        status = error.status_code
        if status in PASSING or status >= 500:
            return _Again(f"the server failed (HTTP {status})", error.response.headers)
        return _Refused(f"the server refused it (HTTP {status})")

"""Asks through the provider's batch API: files of requests that are answered within a day, at a lower price.

The requests without an answer are written into files, uploaded, and waited for; the answers go into the same cache, so
that a killed run waits for the batches that it submitted, and what failed goes into the next round.

The folder "batches" next to the cache holds unanswered.jsonl (one request per line) and, for each batch, the uploaded
file DIGEST.jsonl with DIGEST.json, the names of its prompts.
"""

import asyncio
import contextlib
import functools
import hashlib
import io
import json
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias, TypeVar

import openai

from interp.llm.connection import NO_SCHEMA, TRANSIENT, connect, fatal
from interp.llm.egress import Endpoint
from interp.llm.ledger import MAX_FAILURES, UNUSABLE, AnswerLedger, ChatReply
from interp.llm.requests import ChatAnswer, ChatRequest, message_of
from maira_jax.errors import UserError
from maira_jax.run import files
from maira_jax.run.progress import progress

_T = TypeVar("_T")
_Asked: TypeAlias = dict[str, tuple[str, dict[str, Any]]]  # key -> name of the prompt, and body of the request

_URL: Final = "/v1/chat/completions"
# The provider's limits are 50,000 requests and 200 MB a file.
_MAX_REQUESTS, _MAX_BYTES = 50_000, 150_000_000
_MIN_POLL_S, _MAX_POLL_S = 0.5, 60.0
_MAX_PAGES = 100  # of a hundred batches each, in which one is looked for that a killed run submitted
_MARK = "maira_jax_digest"  # metadata of a batch: digest of its file
_ENDED = ("completed", "failed", "expired", "cancelled")
_UNDER_WAY = ("validating", "in_progress", "finalizing", "cancelling")


class _BatchState(NamedTuple):
    """What the provider says of a batch.

    Attributes:
      ended: whether there is nothing to wait for.
      n_done: requests that are answered or have failed.
      files: ids of the files of answers.
      problem: why it was refused; "" if it was not.
    """

    ended: bool
    n_done: int
    files: tuple[str, ...]
    problem: str


def answers(
    ledger: AnswerLedger, endpoint: Endpoint, requests: Iterable[ChatRequest], description: str
) -> Iterator[ChatReply | None]:
    """Answers requests in their order, after all of them have been read; see `interp.llm.client.ChatClient.answer`."""
    run = _BatchRun(ledger, endpoint, description)
    asyncio.run(run.finish_earlier())
    asked = list(run.spool(requests))
    asyncio.run(run.ask(dict(asked)))
    for key, request in asked:
        yield ledger.reply(request, key)


class _BatchRun:
    """The rounds of batches that one call needs."""

    def __init__(self, ledger: AnswerLedger, endpoint: Endpoint, description: str):
        self._ledger, self._section, self._endpoint = ledger, ledger.section, endpoint
        self._description = description
        self._folder = ledger.folder / "batches"
        self._spool = self._folder / "unanswered.jsonl"

    async def finish_earlier(self) -> None:
        """Waits for the batches of a killed run, whose files are still there."""
        waiting = self._ledger.cache.batches(fetched=False)
        if waiting:
            async with connect(self._section, self._endpoint) as server:
                await self._collect(server, waiting)

    def spool(self, requests: Iterable[ChatRequest]) -> Iterator[tuple[str, ChatRequest]]:
        """Writes what has to be asked to disk.

        Yields:
          Key and request, without the messages, of all requests in their order.
        """
        files.remove(self._folder)
        self._folder.mkdir(parents=True)
        seen: set[str] = set()
        with self._spool.open("w") as file:
            for request in requests:
                key = self._ledger.key(request)
                if key not in seen and not self._ledger.is_resolved(request, key):
                    seen.add(key)
                    file.write(json.dumps({"key": key, "prompt": request.prompt, "messages": request.messages}) + "\n")
                yield key, request.without_messages()

    async def ask(self, wanted: dict[str, ChatRequest]) -> None:
        """Submits rounds of batches until every request is answered or has failed.

        Args:
          wanted: key -> request without its messages.

        Raises:
          UserError: the work cannot go on; what was answered is kept.
        """
        fruitless = 0
        while fruitless < self._section.attempts:
            before = self._ledger.n_answered
            unanswered = [key for key, request in wanted.items() if self._ledger.reply(request, key) is None]
            digests, over_budget = self._write_files(wanted)
            if not digests and over_budget:
                raise self._ledger.budget_spent()
            if not digests:
                break
            async with connect(self._section, self._endpoint) as server:
                await self._collect(server, {await self._submit(server, digest): digest for digest in digests})
            n_answers = self._ledger.n_answered - before
            if n_answers >= MAX_FAILURES and not any(self._ledger.reply(wanted[key], key) for key in unanswered):
                raise self._ledger.hopeless(UNUSABLE)
            fruitless = 0 if n_answers else fruitless + 1
        for key, request in wanted.items():
            if not self._ledger.is_resolved(request, key):
                self._ledger.fail(key, "the provider's batches did not answer it")
        files.remove(self._folder)

    def _write_files(self, wanted: dict[str, ChatRequest]) -> tuple[list[str], bool]:
        """Writes what is not answered into files of the provider's size.

        Returns:
          The digests of the files, and whether the budget left something out.
        """
        digests: list[str] = []
        max_cost = self._section.max_cost
        budget = float("inf") if max_cost is None else max_cost - self._ledger.cache.totals.cost
        lines: list[bytes] = []
        prompts: list[str] = []
        size = 0

        def close() -> None:
            nonlocal size
            content = b"".join(lines)
            digests.append(hashlib.sha256(content).hexdigest())
            self._file(digests[-1]).write_bytes(content)
            files.write_json(self._file(digests[-1], "json"), prompts)
            lines.clear()
            prompts.clear()
            size = 0

        for key, request in self._unanswered(wanted):
            cost = self._ledger.worst_cost(request)
            if cost > budget:
                if lines:
                    close()
                return digests, True
            body = self._ledger.body(request, len(self._ledger.cache.get(key)))
            line = json.dumps({"custom_id": key, "method": "POST", "url": _URL, "body": body}).encode() + b"\n"
            if lines and (len(lines) == _MAX_REQUESTS or size + len(line) > _MAX_BYTES):
                close()
            lines.append(line)
            prompts.append(request.prompt)
            size, budget = size + len(line), budget - cost
        if lines:
            close()
        return digests, False

    def _unanswered(self, wanted: dict[str, ChatRequest]) -> Iterator[tuple[str, ChatRequest]]:
        """Key and request of everything on disk that is neither answered nor has failed."""
        with self._spool.open() as file:
            for line in file:
                entry = json.loads(line)
                light = wanted[entry["key"]]
                if not self._ledger.is_resolved(light, entry["key"]):
                    yield entry["key"], ChatRequest(light.prompt, entry["messages"], light.schema, light.n_items)

    def _file(self, digest: str, ending: str = "jsonl") -> Path:
        return self._folder / f"{digest}.{ending}"

    async def _submit(self, server: openai.AsyncOpenAI, digest: str) -> str:
        """Gives a file to the provider, unless a killed run has just done so; returns the batch's id."""
        fetched = self._ledger.cache.batches(fetched=True)

        async def submitted() -> str:
            n_pages = 0
            async for page in (await server.batches.list(limit=100)).iter_pages():
                for batch in page.data or []:
                    if (batch.metadata or {}).get(_MARK) == digest and batch.id not in fetched:
                        return _name(batch.id)
                n_pages += 1
                if n_pages == _MAX_PAGES:  # the newest come first, and a list may have no end
                    break
            return ""

        async def submit() -> str:
            content = (f"{digest}.jsonl", self._file(digest).read_bytes())
            uploaded = await server.files.create(file=content, purpose="batch")
            created = await server.batches.create(
                input_file_id=_name(uploaded.id), endpoint=_URL, completion_window="24h", metadata={_MARK: digest}
            )
            return _name(created.id)

        batch_id = await self._call(submitted) or await self._call(submit)
        self._ledger.cache.record_batch(batch_id, digest, fetched=False)
        return batch_id

    async def _collect(self, server: openai.AsyncOpenAI, waiting: dict[str, str]) -> None:
        """Waits for batches and records their answers.

        Args:
          server: the provider.
          waiting: batch id -> digest of its file; emptied.
        """
        wait, done, problem = _MIN_POLL_S, dict.fromkeys(waiting, 0), ""
        before = self._ledger.n_answered
        with progress(unit="answers", desc=f"{self._description}: {len(waiting)} batches") as bar:
            while waiting:
                for batch_id in list(waiting):
                    state = await self._call(functools.partial(self._poll, server, batch_id))
                    bar.update(state.n_done - done[batch_id])
                    done[batch_id] = state.n_done
                    if not state.ended:
                        continue
                    asked = self._asked(waiting[batch_id])
                    for file_id in state.files:
                        content = await self._call(functools.partial(server.files.content, file_id))
                        self._record_lines(asked, content.content)
                    problem = problem or state.problem
                    digest = waiting.pop(batch_id)
                    self._ledger.cache.record_batch(batch_id, digest, fetched=True)
                    files.remove(self._file(digest))
                    files.remove(self._file(digest, "json"))
                if waiting:
                    await asyncio.sleep(wait)
                    wait = min(wait * 1.5, _MAX_POLL_S)
        if problem and self._ledger.n_answered == before:
            raise UserError(f"the provider refused the batches ({problem}): fix that and run again")

    async def _poll(self, server: openai.AsyncOpenAI, batch_id: str) -> _BatchState:
        """Asks the provider for the state of a batch. One that it does not know has ended without answers."""
        try:
            batch = await server.batches.retrieve(batch_id)
        except openai.NotFoundError:
            return _BatchState(True, 0, (), "it does not know a batch that it has taken")
        if batch.status not in _ENDED + _UNDER_WAY:
            raise ValueError("a batch has no state that is known")
        counts = (batch.request_counts.completed, batch.request_counts.failed) if batch.request_counts else ()
        if not all(type(count) is int and 0 <= count <= _MAX_REQUESTS for count in counts):
            raise ValueError("a batch has a count of requests that cannot be true")
        made = tuple(_name(file_id) for file_id in (batch.output_file_id, batch.error_file_id) if file_id)
        errors = batch.errors.data if batch.errors and batch.errors.data else []
        problem = "; ".join(f"{error.code}: {error.message}" for error in errors)
        return _BatchState(batch.status in _ENDED, sum(counts), made, problem)

    def _asked(self, digest: str) -> _Asked:
        """What an uploaded file asks; nothing where somebody has removed it, and it is asked again."""
        if not (self._file(digest).exists() and self._file(digest, "json").exists()):
            return {}
        prompts = files.read_json(self._file(digest, "json"))
        entries = map(json.loads, self._file(digest).read_text().splitlines())
        return {entry["custom_id"]: (prompt, entry["body"]) for entry, prompt in zip(entries, prompts, strict=True)}

    def _record_lines(self, asked: _Asked, lines: bytes) -> None:
        """Records a file of answers.

        What was refused has failed. What failed for a time, or is not in the provider's form, stays for another round.

        Args:
          asked: what has no line yet: the first one of a key counts, and takes it out.
          lines: the file.
        """
        for answered in io.BytesIO(lines):
            key, status, answer = _read_line(answered)
            if key not in asked:
                continue
            prompt, body = asked.pop(key)
            structured = "response_format" in body
            if status == 200:
                with contextlib.suppress(ValueError):
                    text = message_of(answer)
                    request = ChatRequest(prompt, body["messages"], ChatAnswer)
                    self._ledger.record(request, key, text, answer.get("usage"))
                    self._ledger.succeed()
                if self._ledger.structured is None:
                    self._ledger.structured = structured
            elif status in NO_SCHEMA and structured and not self._ledger.structured:
                self._ledger.structured = False
            elif 400 <= status < 500 and status not in TRANSIENT:
                self._ledger.fail(key, f"the server refused it (HTTP {status})")

    async def _call(self, call: Callable[[], Awaitable[_T]]) -> _T:
        """A call of the provider's file or batch service.

        Raises:
          UserError: it fails after all tries of the openai library.
        """
        try:
            return await call()
        except openai.APIConnectionError as error:
            if isinstance(error.__cause__, UserError):
                raise error.__cause__ from None
            problem = "the connection broke"
        except openai.APIStatusError as error:
            end = fatal(error, self._section)
            if end is not None:
                raise end from error
            problem = f"HTTP {error.status_code}"
        # The library does not check what it makes objects of.
        except (openai.APIError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
            problem = "what came back has another form"
        raise UserError(
            f"the server at {self._section.base_url} does not do as its batch service should ({problem}): "
            "fix that or set judge.mode to live; run again, all answers are kept"
        )


def _name(identifier: Any) -> str:
    """An identifier that the provider gave.

    Raises:
      ValueError: it is none.
    """
    if isinstance(identifier, str) and identifier and identifier.isprintable():
        return identifier
    raise ValueError("an identifier is missing, or cannot be printed")


def _read_line(line: bytes) -> tuple[str, int, Mapping[str, Any]]:
    """Key, HTTP status and body of a line of a batch's answers; the key is "" where it has not the provider's form."""
    with contextlib.suppress(ValueError, RecursionError):
        match json.loads(line):
            case {"custom_id": str(key), "response": {"status_code": int(status), "body": dict(body)}}:
                return key, status, body
            case {"custom_id": str(key)}:
                return key, 500, {}
    return "", 500, {}

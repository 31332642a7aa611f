"""Asks through the provider's batch API: files of requests that are answered within a day, at a lower price.

The requests without an answer are written into files, uploaded, and waited for; the answers go into the same cache, so
that a killed run waits for the batches that it submitted, and what failed goes into the next round.

The folder "batches" next to the cache holds unanswered.jsonl (one request per line) and, for each batch, the uploaded
file DIGEST.jsonl with DIGEST.json, the names of its prompts.
"""

import asyncio
import functools
import hashlib
import json
from collections.abc import Awaitable, Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Final, TypeVar

import openai

from interp.llm.connection import NO_SCHEMA, TRANSIENT, connect, fatal
from interp.llm.egress import Endpoint
from interp.llm.ledger import AnswerLedger, ChatReply
from interp.llm.requests import ChatAnswer, ChatRequest
from maira_jax.errors import UserError
from maira_jax.run import files
from maira_jax.run.progress import progress

_T = TypeVar("_T")

_URL: Final = "/v1/chat/completions"
# The provider's limits are 50,000 requests and 200 MB a file.
_MAX_REQUESTS, _MAX_BYTES = 50_000, 150_000_000
_MIN_POLL_S, _MAX_POLL_S = 0.5, 60.0
_MARK = "maira_jax_digest"  # metadata of a batch: digest of its file
_ENDED = ("completed", "failed", "expired", "cancelled")


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
            digests, over_budget = self._write_files(wanted)
            if not digests and over_budget:
                raise self._ledger.budget_spent()
            if not digests:
                break
            async with connect(self._section, self._endpoint) as server:
                await self._collect(server, {await self._submit(server, digest): digest for digest in digests})
            fruitless = 0 if self._ledger.n_answered > before else fruitless + 1
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

        async def submitted() -> str | None:
            async for batch in server.batches.list(limit=100):
                if (batch.metadata or {}).get(_MARK) == digest and batch.id not in fetched:
                    return batch.id
            return None

        batch_id = await self._call(submitted)
        if batch_id is None:
            content = (f"{digest}.jsonl", self._file(digest).read_bytes())
            uploaded = await self._call(lambda: server.files.create(file=content, purpose="batch"))
            created = await self._call(
                lambda: server.batches.create(
                    input_file_id=uploaded.id, endpoint=_URL, completion_window="24h", metadata={_MARK: digest}
                ),
            )
            batch_id = created.id
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
                    batch = await self._call(functools.partial(server.batches.retrieve, batch_id))
                    counts = batch.request_counts
                    now = counts.completed + counts.failed if counts else 0
                    bar.update(now - done[batch_id])
                    done[batch_id] = now
                    if batch.status not in _ENDED:
                        continue
                    for file_id in (batch.output_file_id, batch.error_file_id):
                        if file_id:
                            content = await self._call(functools.partial(server.files.content, file_id))
                            self._record_lines(waiting[batch_id], content.text)
                    errors = batch.errors.data if batch.errors and batch.errors.data else []
                    problem = problem or "; ".join(f"{error.code}: {error.message}" for error in errors)
                    self._ledger.cache.record_batch(batch_id, waiting.pop(batch_id), fetched=True)
                if waiting:
                    await asyncio.sleep(wait)
                    wait = min(wait * 1.5, _MAX_POLL_S)
        if problem and self._ledger.n_answered == before:
            raise UserError(f"the provider refused the batches ({problem}): fix that and run again")

    def _record_lines(self, digest: str, lines: str) -> None:
        """Records a file of answers; what was refused has failed, what failed for a time stays for another round."""
        asked: dict[str, tuple[str, dict[str, Any]]] = {}
        prompts = files.read_json(self._file(digest, "json"))
        for line, prompt in zip(self._file(digest).read_text().splitlines(), prompts, strict=True):
            entry = json.loads(line)
            asked[entry["custom_id"]] = prompt, entry["body"]
        for line in filter(None, lines.split("\n")):  # splitlines() also cuts at characters that answers may hold
            entry = json.loads(line)
            key, response = entry["custom_id"], entry.get("response") or {}
            if key not in asked:
                continue
            prompt, body = asked[key]
            structured = "response_format" in body
            status, answer = response.get("status_code", 500), response.get("body") or {}
            if status == 200 and answer.get("choices"):
                text = answer["choices"][0]["message"].get("content") or ""
                self._ledger.record(ChatRequest(prompt, body["messages"], ChatAnswer), key, text, answer.get("usage"))
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
        raise UserError(
            f"the server at {self._section.base_url} does not do as its batch service should ({problem}): "
            "fix that or set judge.mode to live; run again, all answers are kept"
        )

"""Asks through the provider's batch API: files of requests that are answered within a day, at a lower price.

The requests without an answer are written into files, uploaded, and waited for; the answers go into the same `Cache`,
so that a killed run goes on waiting for the batches that it gave away, and what failed goes into the next round.
"""

import asyncio
import functools
import hashlib
import json
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

import openai

from interp.llm.client import NO_SCHEMA, PASSING, Client, connect, fatal
from interp.llm.rate_limit import wait_s
from interp.llm.requests import Request
from maira_jax.errors import UserError
from maira_jax.run import files
from maira_jax.run.progress import progress

_T = TypeVar("_T")

_URL: Final = "/v1/chat/completions"
# The provider's limits are 50,000 requests and 200 MB a file.
_MOST_REQUESTS, _MOST_BYTES = 50_000, 150_000_000
_SHORTEST_POLL_S, _LONGEST_POLL_S = 0.5, 60.0
_MARK = "maira_jax_digest"  # metadata of a batch: digest of its file
_ENDED = ("completed", "failed", "expired", "cancelled")


def ask(client: Client, what: str, groups: Callable[[], Iterable[Sequence[Request]]]) -> None:
    """Asks everything that the cache has no answer to.

    Args:
      client: whose server and cache are used.
      what: for the progress bar.
      groups: gives the requests, a group a feature, as often as it is called.

    Raises:
      UserError: the work cannot go on; what was answered is kept.
    """
    asyncio.run(_ask(client, what, groups))


async def _ask(client: Client, what: str, groups: Callable[[], Iterable[Sequence[Request]]]) -> None:
    fruitless = 0
    while fruitless < client.cfg.attempts:
        waiting, before = client.cache.batches(fetched=False), client.answered
        parts: list[_Part] = []
        if not waiting:
            parts, over = _write_parts(client, groups())
            if not parts and over:
                raise client.budget_spent()
            if not parts:
                return
        async with connect(client) as server:
            for part in parts:
                waiting[await _submit(server, client, part)] = part.digest
            await _collect(server, client, what, waiting)
        fruitless = 0 if client.answered > before else fruitless + 1
    for group in groups():
        for request in group:
            key = client.key(request)
            if not client.is_settled(request, key):
                client.give_up(key, "the provider's batches did not answer it")


class _Part(NamedTuple):
    """A file of requests."""

    path: Path
    digest: str
    n_requests: int


def _write_parts(client: Client, groups: Iterable[Sequence[Request]]) -> tuple[list[_Part], bool]:
    """Writes what has to be asked into files of the provider's size.

    Returns:
      The files, and whether the budget left something out.
    """
    folder = client.folder / "batches"
    files.remove(folder)  # of a killed run: written again, with the same content
    folder.mkdir(parents=True)
    parts: list[_Part] = []
    budget = float("inf") if client.cfg.max_cost is None else client.cfg.max_cost - client.cache.totals.cost
    seen: set[str] = set()
    lines: list[bytes] = []
    size, over = 0, False

    def close() -> None:
        content = b"".join(lines)
        digest = hashlib.sha256(content).hexdigest()
        path = folder / f"{digest}.jsonl"
        path.write_bytes(content)
        parts.append(_Part(path, digest, len(lines)))
        lines.clear()

    for request, key in _unsettled(client, groups):
        cost = client.worst_cost(request)
        if key in seen:
            continue
        if cost > budget:
            over = True
            break
        body = client.body(request, len(client.cache.get(key)))
        line = json.dumps({"custom_id": key, "method": "POST", "url": _URL, "body": body}).encode() + b"\n"
        if lines and (len(lines) == _MOST_REQUESTS or size + len(line) > _MOST_BYTES):
            close()
            size = 0
        seen.add(key)
        lines.append(line)
        size, budget = size + len(line), budget - cost
    if lines:
        close()
    return parts, over


def _unsettled(client: Client, groups: Iterable[Sequence[Request]]) -> Iterator[tuple[Request, str]]:
    for group in groups:
        for request in group:
            key = client.key(request)
            if not client.is_settled(request, key):
                yield request, key


async def _submit(server: openai.AsyncOpenAI, client: Client, part: _Part) -> str:
    """Gives a file to the provider, unless a killed run has just done so; returns the batch's id."""
    fetched = client.cache.batches(fetched=True)

    async def given() -> str | None:
        async for batch in server.batches.list(limit=100):
            if (batch.metadata or {}).get(_MARK) == part.digest and batch.id not in fetched:
                return batch.id
        return None

    batch_id = await _try(client, given)
    if batch_id is None:
        uploaded = await _try(
            client, lambda: server.files.create(file=(f"{part.digest}.jsonl", part.path.read_bytes()), purpose="batch")
        )
        created = await _try(
            client,
            lambda: server.batches.create(
                input_file_id=uploaded.id, endpoint=_URL, completion_window="24h", metadata={_MARK: part.digest}
            ),
        )
        batch_id = created.id
    client.cache.keep_batch(batch_id, part.digest, fetched=False)
    return batch_id


async def _collect(server: openai.AsyncOpenAI, client: Client, what: str, waiting: dict[str, str]) -> None:
    """Waits for batches and keeps their answers."""
    wait, done, problem = _SHORTEST_POLL_S, dict.fromkeys(waiting, 0), ""
    before = client.answered
    with progress(unit="answers", desc=f"interpret: ask to {what}, {len(waiting)} batches") as bar:
        while waiting:
            for batch_id in list(waiting):
                batch = await _try(client, functools.partial(server.batches.retrieve, batch_id))
                counts = batch.request_counts
                now = counts.completed + counts.failed if counts else 0
                bar.update(now - done[batch_id])
                done[batch_id] = now
                if batch.status not in _ENDED:
                    continue
                for file_id in (batch.output_file_id, batch.error_file_id):
                    if file_id:
                        content = await _try(client, functools.partial(server.files.content, file_id))
                        _keep_lines(client, waiting[batch_id], content.text)
                errors = batch.errors.data if batch.errors and batch.errors.data else []
                problem = problem or "; ".join(f"{error.code}: {error.message}" for error in errors)
                client.cache.keep_batch(batch_id, waiting.pop(batch_id), fetched=True)
            if waiting:
                await asyncio.sleep(wait)
                wait = min(wait * 1.5, _LONGEST_POLL_S)
    if problem and client.answered == before:
        raise UserError(f"the provider refused the batches ({problem}): mend that and run again")


def _keep_lines(client: Client, digest: str, lines: str) -> None:
    """Puts a file of answers into the cache; what was refused is given up, what failed stays for another round."""
    asked = {}
    for line in (client.folder / "batches" / f"{digest}.jsonl").read_text().splitlines():
        entry = json.loads(line)
        asked[entry["custom_id"]] = entry["body"]
    for line in filter(None, lines.split("\n")):  # splitlines() also cuts at characters that answers may hold
        entry = json.loads(line)
        key, response = entry["custom_id"], entry.get("response") or {}
        if key not in asked:
            continue
        status, answer = response.get("status_code", 500), response.get("body") or {}
        if status == 200 and answer.get("choices"):
            text = answer["choices"][0]["message"].get("content") or ""
            request = Request.from_messages(asked[key]["messages"])
            client.keep(request, key, len(client.cache.get(key)), text, answer.get("usage"))
            if client.structured is None:
                client.structured = "response_format" in asked[key]
        elif status in NO_SCHEMA and "response_format" in asked[key] and not client.structured:
            client.structured = False
        elif 400 <= status < 500 and status not in PASSING:
            client.give_up(key, f"the server refused it (HTTP {status})")


async def _try(client: Client, call: Callable[[], Awaitable[_T]]) -> _T:
    """A call of the provider's file or batch service, again where it failed for a time."""
    failures = 0
    while True:
        try:
            return await call()
        except openai.APIConnectionError as error:
            if isinstance(error.__cause__, UserError):
                raise error.__cause__ from None
            headers, problem = None, "the connection broke"
        except openai.APIStatusError as error:
            end = fatal(error, client)
            if end is not None:
                raise end from error
            headers, problem = error.response.headers, f"HTTP {error.status_code}"
            if error.status_code not in PASSING and error.status_code < 500:
                failures = client.cfg.attempts
        failures += 1
        if failures >= client.cfg.attempts:
            raise UserError(
                f"the server at {client.cfg.base_url} does not do as its batch service should ({problem}): "
                "mend that or set judge.mode to live; run again, all answers are kept"
            )
        await asyncio.sleep(wait_s(failures, headers))

"""The one client for language models behind OpenAI-compatible servers: a batch of requests in, their answers out.

Every answer is kept in a cache before anything is done with it. A request that fails is sent again; one that fails for
good is counted with its reason, and the others continue. The work stops, and keeps what it has, where no further
request can succeed: a wrong key, an unknown model, a server that does not answer any more, a spent budget.
"""

import contextlib
import dataclasses
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import ml_collections

from interp.llm import egress
from interp.llm.answer_cache import AnswerCache
from interp.llm.ledger import TYPICAL_ANSWER, AnswerLedger, ChatReply
from interp.llm.requests import ChatRequest
from interp.llm.section import JudgeSection
from maira_jax.errors import UserError
from maira_jax.run import storage

FOLDER, _ANSWERS = "judge", "answers.sqlite"  # in a run directory


def verify_answers(workdir: Path) -> int:
    """Compares the answers that a run directory keeps with their checksums; returns how many there are.

    Raises:
      UserError: one was changed, or the file cannot be read.
    """
    path = Path(workdir) / FOLDER / _ANSWERS
    storage.fetch(path)
    if not path.is_file():
        return 0
    with contextlib.closing(AnswerCache(path)) as cache:
        return cache.verify()


@dataclasses.dataclass
class RequestCount:
    """How much would be asked (see `ChatClient.counting`)."""

    n_requests: int = 0
    n_tokens: int = 0


class ChatClient:
    """Asks one model, within the limits of the `judge` section.

    Args:
      section: the model and the limits.
      path: file of the cache.

    Raises:
      UserError: the server is a remote one that is not allowed.
    """

    def __init__(self, section: JudgeSection, path: Path):
        self.section = section
        self._endpoint = egress.check(section.base_url, section.allow_remote)
        self._ledger = AnswerLedger(section, path)
        self._count: RequestCount | None = None

    @classmethod
    def open(cls, config: ml_collections.ConfigDict, workdir: Path) -> "ChatClient":
        """The client of the section `judge`; its cache is in WORKDIR/judge.

        Raises:
          UserError: a field is unknown or out of range, or the server is a remote one that is not allowed.
        """
        return cls(JudgeSection.of(config), Path(workdir) / FOLDER / _ANSWERS)

    def answer(self, requests: Iterable[ChatRequest], description: str) -> Iterator[ChatReply | None]:
        """Answers requests: from the cache, or by asking many at a time.

        Args:
          requests: what to ask; read as there is room for it, in mode "batch" to the end before the first answer.
          description: what they are for, for the progress bar.

        Yields:
          The reply to each request, in their order; None where none could be had. Ask for one soon after the other:
          what is under way waits meanwhile.

        Raises:
          UserError: the work cannot go on; what was answered is kept.
        """
        if self._count is not None:
            return self._counted(requests, self._count)
        # Not at the top: they import openai, which takes longer than many a command takes to run.
        from interp.llm import batch_api, live

        ask = batch_api.answers if self.section.mode == "batch" else live.answers
        return ask(self._ledger, self._endpoint, requests, description)

    @contextlib.contextmanager
    def counting(self) -> Iterator[RequestCount]:
        """While it is open, requests are counted instead of asked, and have no answers."""
        self._count = RequestCount()
        try:
            yield self._count
        finally:
            self._count = None

    def _counted(self, requests: Iterable[ChatRequest], count: RequestCount) -> Iterator[None]:
        for request in requests:
            count.n_requests += 1
            count.n_tokens += self._ledger.tokens(request)
            yield None

    def announce(self, count: RequestCount, scale: float) -> None:
        """Prints what `scale` times as many requests as were counted are going to take and cost."""
        n_requests, tokens_in = count.n_requests * scale, count.n_tokens * scale
        tokens_out = n_requests * TYPICAL_ANSWER
        spent = self._ledger.cache.totals
        print(
            f"judge: about {n_requests:,.0f} requests to {self.section.model} at {self.section.base_url}, "
            f"{tokens_in / 1e6:,.1f} million tokens in, {tokens_out / 1e6:,.1f} million out, "
            f"${self.section.cost(tokens_in, tokens_out):,.2f} at the configured prices; "
            f"{spent.answers:,} answered already, ${spent.cost:,.2f} spent",
            file=sys.stderr,
        )

    def usage(self) -> dict[str, Any]:
        """What was asked and spent in this run directory so far, and what failed in this process."""
        totals = self._ledger.cache.totals
        return {
            "endpoint": self.section.base_url,
            "answers": totals.answers,
            "tokens_in": totals.tokens_in,
            "tokens_out": totals.tokens_out,
            "cost": totals.cost,
            "failed": dict(self._ledger.failures),
        }

    def all_failed(self) -> UserError | None:
        """The end of a run in which no request had a usable answer; None where one had, or nothing was asked."""
        return self._ledger.all_failed()

    def close(self) -> None:
        """Lets another process have the cache, and prints how many requests stayed without an answer, and why."""
        self._ledger.close()
        if failures := self._ledger.failures:
            reasons = "; ".join(f"{n:,}: {reason}" for reason, n in failures.most_common())
            print(f"judge: {failures.total():,} requests have no usable answer ({reasons})", file=sys.stderr)

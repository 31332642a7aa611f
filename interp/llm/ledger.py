"""What was asked, answered, failed and spent: all that the ways of asking a server share."""

import contextlib
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from interp.llm.answer_cache import AnswerCache, CachedAnswer
from interp.llm.bounded import counted
from interp.llm.requests import CHARACTERS_PER_TOKEN, ChatAnswer, ChatRequest
from interp.llm.section import JudgeSection
from maira_jax.errors import UserError

TYPICAL_ANSWER = 70  # tokens: a name and two sentences, or five numbered answers
# No tokenizer makes this many times fewer tokens of a text than is usual in English: such a count is not believed.
_MAX_TIMES_FEWER = 2
UNUSABLE = "its answers did not have the form that was asked for"
# An answer that cannot be used is asked for again with some randomness: at 0 it would be the same.
_RETRY_TEMPERATURE = 0.7
MAX_FAILURES = 20  # requests that fail one after the other, without an answer in between, before the work stops


class ChatReply(NamedTuple):
    """The answer to a request.

    Attributes:
      answer: the answer, an instance of the request's schema.
      cost: what all answers to the request cost in US dollars, those that could not be used included.
    """

    answer: Any
    cost: float


class AnswerLedger:
    """Decides what has to be asked, and records what came of it.

    Attributes:
      section: the model, its parameters, prices and limits.
      folder: where the cache is.
      n_answered: requests that the server answered in this process.
      n_usable: how often a request had a usable answer in this process, from the server or the cache.
      structured: whether the server holds answers to a JSON schema, once that is known.
      failures: reason -> how many requests stayed without an answer in this process.

    Args:
      section: the model, its parameters, prices and limits.
      path: file of the cache.
    """

    def __init__(self, section: JudgeSection, path: Path):
        self.section = section
        self.folder = path.parent
        self.n_answered = self.n_usable = 0
        self.structured: bool | None = None
        self.failures: Counter[str] = Counter()
        self._path = path
        self._cache: AnswerCache | None = None
        self._failed: set[str] = set()  # keys
        self._failed_in_a_row = 0
        self._tokens = Counter(counted=1, guessed=1)  # of answered requests, by the server and by `ChatRequest.tokens`

    @property
    def cache(self) -> AnswerCache:
        """Opened when it is first needed, so that nothing is written by a stage that is refused."""
        if self._cache is None:
            self._cache = AnswerCache(self._path)
        return self._cache

    def close(self) -> None:
        """Lets another process have the cache."""
        if self._cache is not None:
            self._cache.close()
            self._cache = None

    def key(self, request: ChatRequest) -> str:
        """The key of a request in the cache."""
        return request.key(self.section.model, self.section.parameters)

    def reply(self, request: ChatRequest, key: str) -> ChatReply | None:
        """The usable answer that the cache holds; None if it has none."""
        answers = self.cache.get(key)
        for answer in answers:
            found = usable(request, answer)
            if found is not None:
                self.n_usable += 1
                return ChatReply(found, sum(each.cost for each in answers))
        return None

    def is_resolved(self, request: ChatRequest, key: str) -> bool:
        """Whether there is nothing to ask: it has a usable answer, or as many others as may be tried, or has failed."""
        if key in self._failed:
            return True
        answers = self.cache.get(key)
        if any(usable(request, answer) is not None for answer in answers):
            return True
        if len(answers) < self.section.attempts:
            return False
        self._note_failure(key, UNUSABLE)
        return True

    def body(self, request: ChatRequest, attempt: int) -> dict[str, Any]:
        """What is sent, after `attempt` answers that could not be used."""
        body = {"model": self.section.model, "messages": request.messages, **self.section.parameters}
        if attempt and "temperature" in body:
            body["temperature"] = max(body["temperature"], _RETRY_TEMPERATURE)
        if self.structured is not False:
            body["response_format"] = request.response_format
        return body

    def record(self, request: ChatRequest, key: str, text: str, usage: Any) -> CachedAnswer:
        """Puts an answer into the cache; what the server did not count is guessed.

        Args:
          request: what was asked.
          key: its key in the cache.
          text: content of the message that came back.
          usage: the counts of tokens, as the chat API has them; what cannot be true of them is guessed too.
        """
        # An answer that was cut off may end with half a character, which no file can hold.
        text = text.encode(errors="replace").decode()
        tokens_in = counted(usage, "prompt_tokens") or self.tokens(request)
        tokens_out = counted(usage, "completion_tokens") or len(text) // CHARACTERS_PER_TOKEN
        tokens_in = max(tokens_in, request.tokens // _MAX_TIMES_FEWER)
        tokens_out = max(tokens_out, len(text) // CHARACTERS_PER_TOKEN // _MAX_TIMES_FEWER)
        answer = CachedAnswer(text, tokens_in, tokens_out, self.section.cost(tokens_in, tokens_out))
        attempt = len(self.cache.get(key))
        self.cache.add(key, attempt, self.section.model, request.prompt, request.recorded(), answer)
        self._tokens.update(counted=tokens_in, guessed=request.tokens)
        self.n_answered += 1
        return answer

    def succeed(self) -> None:
        """Records that a request has a usable answer."""
        self._failed_in_a_row = 0

    def fail(self, key: str, reason: str) -> None:
        """Records that a request stays without an answer.

        Raises:
          UserError: too many do, one after the other.
        """
        self._note_failure(key, reason)
        self._failed_in_a_row += 1
        if self._failed_in_a_row >= MAX_FAILURES:
            raise self.hopeless(reason)

    def hopeless(self, reason: str) -> UserError:
        """The end of a run in which nothing succeeds."""
        return UserError(
            f"{MAX_FAILURES} requests to {self.section.base_url} failed one after the other, the last because "
            f"{reason}: fix that and run again, all answers are kept"
        )

    def all_failed(self) -> UserError | None:
        """The end of a run in which no request had a usable answer; None where one had, or nothing was asked."""
        if self.n_usable or not self.failures:
            return None
        ((reason, _),) = self.failures.most_common(1)
        return UserError(
            f"none of {self.failures.total():,} requests to {self.section.base_url} had a usable answer, most often "
            f"because {reason}: fix that and run again, all answers are kept"
        )

    def _note_failure(self, key: str, reason: str) -> None:
        if key not in self._failed:
            self._failed.add(key)
            self.failures[reason] += 1

    def tokens(self, request: ChatRequest) -> int:
        """About how many tokens a request has: guessed from its length, corrected by what the server counted so far."""
        return int(request.tokens * self._tokens["counted"] / self._tokens["guessed"])

    def worst_cost(self, request: ChatRequest) -> float:
        """US dollars that a request may cost, with an allowance for what is not known of its tokens."""
        return self.section.cost(1.2 * self.tokens(request), self.section.max_tokens)

    def budget_spent(self) -> UserError:
        """The end of a run that may not spend more."""
        return UserError(
            f"judge.max_cost of ${self.section.max_cost:.2f} is used up (${self.cache.totals.cost:.2f} spent): "
            "all answers are kept, run again with a higher --max_cost to continue"
        )

    def summary(self) -> str:
        """What was answered and spent, for a progress bar."""
        n_failed = self.failures.total()
        failed = f", {n_failed} failed" if n_failed else ""
        return f"{self.n_answered} answers, ${self.cache.totals.cost:.2f}{failed}"


def usable(request: ChatRequest, answer: CachedAnswer) -> ChatAnswer | None:
    """The answer that a text is; None if it does not have the form that was asked for."""
    with contextlib.suppress(ValueError, RecursionError):
        return request.read(answer.text)
    return None

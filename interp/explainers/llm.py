"""The judge that is a language model behind an OpenAI-compatible server."""

import dataclasses
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections

from interp.explainers.evidence import ExplainTask
from interp.explainers.images import StudyImages
from interp.explainers.judge import Comparison, DetectTask, Explanation, FuzzTask, Groups, SteerTask, Task, Verdict
from interp.llm import batch_api, requests
from interp.llm.client import TYPICAL_ANSWER, Client, ClientConfig
from maira_jax.errors import UserError

MODES = ("live", "batch")
FOLDER = "judge"
_OWN = ("mode", "images", "image_size", "n_examples")  # fields of the section that are not the client's


class LlmJudge:
    """Explains, detects and fuzzes by prompts (see `interp.llm.requests`).

    All tasks of a phase are asked in `prepare`; afterwards the answers come from the cache. Whatever is asked without
    having been prepared is asked then.

    Args:
      client: asks, and keeps the answers.
      mode: "live", or "batch" for the provider's batch API.
      n_examples, n_images, read_image: see `interp.llm.requests.request`.
    """

    def __init__(self, client: Client, mode: str, n_examples: int, n_images: int, read_image: requests.ReadImage):
        self._client, self._mode = client, mode
        self._render = lambda task: requests.request(task, n_examples, n_images, read_image)
        self.name = client.cfg.model
        self.prompt_version = " ".join(requests.PROMPTS)
        self.identity: Mapping[str, Any] = {
            "model": client.cfg.model,
            "parameters": dict(client.cfg.parameters),
            "prompts": list(requests.PROMPTS),
            "n_examples": n_examples,
            "images": n_images,
        }

    def announce(self, sample: Iterable[Sequence[Task]], n_features: int) -> None:
        cfg = self._client.cfg
        n_sampled, n_requests, tokens_in = 0, 0, 0
        for tasks in sample:
            n_sampled += 1
            n_requests += len(tasks)
            tokens_in += sum(self._client.tokens(self._render(task)) for task in tasks)
        scale = n_features / max(n_sampled, 1)
        tokens_out = n_requests * TYPICAL_ANSWER
        cost = cfg.cost(tokens_in * scale, tokens_out * scale)
        spent = self._client.cache.totals
        print(
            f"judge: about {n_requests * scale:,.0f} requests to {cfg.model} at {cfg.base_url}, "
            f"{tokens_in * scale / 1e6:,.1f} million tokens in, {tokens_out * scale / 1e6:,.1f} million out, "
            f"${cost:,.2f} at the configured prices; {spent.answers:,} answered already, ${spent.cost:,.2f} spent",
            file=sys.stderr,
        )

    def prepare(self, what: str, tasks: Groups, n_features: int) -> None:
        def rendered() -> Iterator[list[requests.Request]]:
            return ([self._render(task) for task in group] for group in tasks())

        if self._mode == "batch":
            batch_api.ask(self._client, what, rendered)
        else:
            self._client.ask(what, rendered(), n_features)

    def explain(self, tasks: Sequence[ExplainTask]) -> list[Explanation | None]:
        return self._answers("explain", tasks, lambda answer, cost: Explanation(answer[0], answer[1], cost))

    def detect(self, tasks: Sequence[DetectTask]) -> list[Verdict | None]:
        return self._answers("detect", tasks, Verdict)

    def fuzz(self, tasks: Sequence[FuzzTask]) -> list[Verdict | None]:
        return self._answers("fuzz", tasks, Verdict)

    def compare(self, tasks: Sequence[SteerTask]) -> list[Comparison | None]:
        """A comparison for each task; None where none could be had."""
        return self._answers("steer", tasks, lambda answer, cost: Comparison(*[*answer, cost]))

    def usage(self) -> dict[str, Any]:
        totals = self._client.cache.totals
        return {
            "endpoint": self._client.cfg.base_url,
            "answers": totals.answers,
            "tokens_in": totals.tokens_in,
            "tokens_out": totals.tokens_out,
            "cost": totals.cost,
            "failed": dict(self._client.given_up),
        }

    def close(self) -> None:
        self._client.close()

    def _answers(self, what: str, tasks: Sequence[Task], make: Callable[[Any, float], Any]) -> list[Any]:
        wanted = [self._render(task) for task in tasks]
        if not all(self._client.is_settled(request, self._client.key(request)) for request in wanted):
            self.prepare(what, lambda: ([task] for task in tasks), len(tasks))
        return [make(*found) if found else None for found in map(self._client.answer, wanted)]


def from_config(config: ml_collections.ConfigDict, workdir: Path) -> LlmJudge:
    """The judge of the sections `judge` and `studies`; its cache is in WORKDIR/judge.

    Raises:
      UserError: a field is missing, unknown or out of range, or the server is a remote one that is not allowed.
    """
    section = config.judge.to_dict() if "judge" in config else {}
    names = {field.name for field in dataclasses.fields(ClientConfig)} | set(_OWN)
    if section.keys() != names:
        wrong = sorted(section.keys() ^ names)[0]
        problem = "is missing" if wrong in names else "is unknown"
        raise UserError(f"judge.{wrong} {problem}: see configs/phantom.py for the fields of this section")
    own = {name: section.pop(name) for name in _OWN}
    cfg = ClientConfig(**section)
    _check(cfg, own)
    images = StudyImages(config.studies, workdir / "activations", own["image_size"])
    client = Client(cfg, workdir / FOLDER / "answers.sqlite")
    return LlmJudge(client, own["mode"], own["n_examples"], own["images"], images.png)


def _check(cfg: ClientConfig, own: Mapping[str, Any]) -> None:
    if not cfg.model:
        raise UserError("judge.model is empty: name the model as its server does, with --config.judge.model=NAME")
    if own["mode"] not in MODES:
        raise UserError(f"judge.mode {own['mode']!r} does not exist: choose {' or '.join(MODES)}")
    for name, value, least in (
        ("n_examples", own["n_examples"], 1),
        ("images", own["images"], 0),
        ("image_size", own["image_size"], 1),
        ("attempts", cfg.attempts, 1),
        ("concurrency", cfg.concurrency, 1),
        ("requests_per_minute", cfg.requests_per_minute, 0),
        ("tokens_per_minute", cfg.tokens_per_minute, 0),
        ("price_in", cfg.price_in, 0),
        ("price_out", cfg.price_out, 0),
    ):
        if value < least:
            raise UserError(f"judge.{name} is {value}, but must be at least {least}: change it")
    if cfg.timeout <= 0:
        raise UserError(f"judge.timeout is {cfg.timeout}, but must be above 0: change it")
    if cfg.max_cost is not None and not cfg.price_in + cfg.price_out > 0:
        raise UserError("judge.max_cost needs prices to count with: set judge.price_in and judge.price_out")

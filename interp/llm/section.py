"""The `judge` section: which language model is asked, how fast, and for how much."""

from collections.abc import Mapping
from typing import Any, Literal

from maira_jax.errors import UserError
from maira_jax.run.config import Section, setting

# Answers without a limit of their own are expected, and paid in advance, as this long.
_MAX_TOKENS = 1024


class JudgeSection(Section, name="judge"):
    """The language model that interpret.judge=llm asks. A key, if needed, is in the environment: OPENAI_API_KEY."""

    base_url: str = setting(
        "http://127.0.0.1:8000/v1",
        "Address of an OpenAI-compatible server, with its version.",
        decides=False,
        address=True,
    )
    model: str = setting("", "Name of the model, as that server has it.")
    allow_remote: bool = setting(
        False,
        "Whether base_url may be another machine; prompts hold text of reports, and images if asked for.",
        decides=False,
        remembered=False,
    )
    mode: Literal["live", "batch"] = setting(
        "live", "live, or batch for the provider's batch API: within a day, at a lower price.", decides=False
    )
    parameters: dict[str, Any] = setting(
        {"temperature": 0.0, "max_tokens": 512}, "Parameters of the chat API that are sent with every request."
    )
    images: int = setting(
        0, "X-rays in an explaining prompt, for features active on images; 0: the model reads no images.", ge=0
    )
    attempts: int = setting(
        8,
        "Tries of a request that fails, and answers to one whose answers do not have the form that was asked for.",
        ge=1,
        decides=False,
    )
    timeout: float = setting(120.0, "Seconds after which a try of a request has failed.", gt=0, decides=False)
    concurrency: int = setting(64, "Requests under way at a time.", ge=1, decides=False)
    requests_per_minute: float = setting(0.0, "Requests in a minute, at most; 0: no limit.", ge=0, decides=False)
    tokens_per_minute: float = setting(0.0, "Tokens in and out in a minute, at most; 0: no limit.", ge=0, decides=False)
    price_in: float = setting(0.0, "US dollars for a million tokens of requests, in this mode.", ge=0, decides=False)
    price_out: float = setting(0.0, "US dollars for a million tokens of answers, in this mode.", ge=0, decides=False)
    max_cost: float | None = setting(
        None, "US dollars for this run directory, all calls together; None: no limit.", decides=False
    )

    def check(self) -> None:
        if not self.model:
            raise UserError("judge.model is empty: name the model as its server does, with --config.judge.model=NAME")
        if self.max_cost is not None and not self.price_in + self.price_out > 0:
            raise UserError("judge.max_cost needs prices to count with: set judge.price_in and judge.price_out")

    def cost(self, tokens_in: float, tokens_out: float) -> float:
        """The price of that many tokens, in US dollars."""
        return (tokens_in * self.price_in + tokens_out * self.price_out) / 1e6

    @property
    def max_tokens(self) -> int:
        """How many tokens an answer may have."""
        parameters: Mapping[str, Any] = self.parameters
        return int(parameters.get("max_completion_tokens") or parameters.get("max_tokens") or _MAX_TOKENS)

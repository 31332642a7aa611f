"""A program that renders a chat template within limits, since a template is a program of whoever wrote the checkpoint.

It is run as a file of its own (`maira_jax.inputs.prompt` does), so that it starts in a few hundredths of a second. From
standard input it takes JSON with the template as `source` and with `conversations`, lists of messages; to standard
output it gives a list with, for each, its `text` or the `error`.
"""

import contextlib
import json
import resource
import sys
from typing import Any

import jinja2
import jinja2.sandbox

MAX_SECONDS, MAX_BYTES, MAX_CHARACTERS = 2, 2**29, 2**16


def limit() -> None:
    """Has the kernel end this process where it computes for too long, and deny it more memory."""
    resource.setrlimit(resource.RLIMIT_CPU, (MAX_SECONDS, MAX_SECONDS))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(ValueError, OSError):  # macOS has no such limit
        resource.setrlimit(resource.RLIMIT_AS, (MAX_BYTES, MAX_BYTES))


def render(source: str, messages: list[dict[str, Any]]) -> str:
    """Renders a chat template in the environment that transformers gives it."""

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    environment.globals["raise_exception"] = raise_exception
    text = environment.from_string(source).render(
        messages=messages, add_generation_prompt=True, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    if len(text) > MAX_CHARACTERS:
        raise jinja2.TemplateError(f"it writes {len(text):,} characters")
    return text


def main() -> None:
    limit()
    request = json.load(sys.stdin)
    answers = []
    for messages in request["conversations"]:
        try:
            answers.append({"text": render(request["source"], messages)})
        except Exception as error:  # a template can fail in any way
            answers.append({"error": f"{type(error).__name__}: {error}"[:500]})
    json.dump(answers, sys.stdout)


if __name__ == "__main__":
    main()

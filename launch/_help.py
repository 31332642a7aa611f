"""The text of `--help`: the command's flags, and the fields of the configuration that it reads."""

import textwrap
from collections.abc import Mapping, Sequence

from ml_collections import ConfigDict

from maira_jax.run.config import Section, shown

_WIDTH = 118


def text(
    command: str, doc: str, flags: Mapping[str, str], sections: Sequence[type[Section]], config: ConfigDict, source: str
) -> str:
    """Everything that `--help` prints.

    Args:
      command: the text by which the command is called.
      doc: what the command does.
      flags: the name of each flag -> its explanation.
      sections: the sections of the configuration that the command reads.
      config: the configuration whose values are shown.
      source: the name of the file that the configuration comes from.
    """
    lines = [f"Usage: {command} [--flag=value ...]", "", doc.strip(), "", "Flags:"]
    for name, explanation in flags.items():
        lines += _entry(f"--{name}", explanation)
    lines += ["", f"Fields of the configuration that it reads, with the values of {source}:"]
    for section in sections:
        for name, value, meaning in section.explained(config):
            lines += _entry(f"--config.{name}={shown(value)}", meaning)
    return "\n".join(lines)


def _entry(name: str, explanation: str) -> list[str]:
    return [f"  {name}", *textwrap.wrap(explanation, _WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6)]

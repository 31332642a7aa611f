"""The one exception for input that a user can fix."""

import re

_MAX_LENGTH = 200


class UserError(Exception):
    """Bad input. Its text is one sentence that names the file or field and the fix.

    What cannot be printed is escaped, since the sentence may quote a file: a line break would make two sentences of
    it, and a terminal would obey an escape sequence.
    """

    def __init__(self, sentence: str) -> None:
        super().__init__("".join(char if char.isprintable() else repr(char)[1:-1] for char in sentence))


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, to be quoted in a sentence; its class where it has no message.

    Leaves out the details that TensorStore and XLA append in brackets, e.g. "[source locations='...']".
    """
    line = (str(error).splitlines() or [""])[0]
    return re.split(r" \[[\w -]+=", line)[0][:_MAX_LENGTH] or type(error).__name__

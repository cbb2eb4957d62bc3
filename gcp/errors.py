"""The exception for mistakes that the user can correct: every script prints its one line and exits with status 2."""

from __future__ import annotations

import errno
import re

LONGEST = 1200  # characters in a message: text that it quotes, such as a name in a damaged file, can be of any length


class UserError(Exception):
    """Something that the user can correct; its message is one line that says where, what, and what to do.

    `key` is a stable name for the kind of mistake, such as `config.unknown-key`, which tests and programs can check;
    the message is for people, and its wording may change. Passwords in URLs within the message are hidden.
    """

    exit_status = 2

    def __init__(self, message: str, key: str = "") -> None:
        line = without_passwords(" ".join(line.strip() for line in message.splitlines()))
        super().__init__(line if len(line) <= LONGEST else f"{line[: LONGEST // 2]} ... {line[-LONGEST // 2 :]}")
        self.key = key


def without_passwords(text: str) -> str:
    """The text with the passwords of URLs replaced by ***, in whichever way they are given."""
    return re.sub(r"(?i)(password=)[^&\s'\"]*", r"\1***", re.sub(r"(://[^/:\s]*:)\S*@", r"\1***@", text))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the error means that the machine or a GPU has run out of memory."""
    # MXNet raises an exception type of its own for everything, and cannot be imported here.
    is_mxnet = type(error).__name__ == "MXNetError" and re.search(r"out of memory|failed to allocate", str(error), re.I)
    return bool(is_mxnet) or isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM

"""What is the user's to put right, as one exception: every script prints its one line and exits with status 2."""

from __future__ import annotations

import errno
import re

LONGEST = 1200  # characters of a message: what it quotes, such as a name in a damaged file, can be of any length


class UserError(Exception):
    """Something that the user can put right; its message is one line: where, what, and what to do.

    `key` is a stable name of the kind of mistake, such as `config.unknown-key`, for tests and programs to ask for;
    the message is for people, and its words may change. Passwords of URLs in it are hidden.
    """

    exit_status = 2

    def __init__(self, message: str, key: str = "") -> None:
        line = without_passwords(" ".join(line.strip() for line in message.splitlines()))
        super().__init__(line if len(line) <= LONGEST else f"{line[: LONGEST // 2]} ... {line[-LONGEST // 2 :]}")
        self.key = key


def without_passwords(text: str) -> str:
    """The text with *** for the passwords of URLs in it, whichever way they are given."""
    return re.sub(r"(?i)(password=)[^&\s'\"]*", r"\1***", re.sub(r"(://[^/:@\s]*:)\S*@", r"\1***@", text))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether there was too little memory, of the machine or of a GPU."""
    # MXNet has its own exception for everything, and cannot be imported here.
    is_mxnet = type(error).__name__ == "MXNetError" and re.search(r"out of memory|failed to allocate", str(error), re.I)
    return bool(is_mxnet) or isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM

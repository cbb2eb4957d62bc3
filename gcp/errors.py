"""What is the user's to put right, as one exception: every script prints its one line and exits with status 2."""

from __future__ import annotations


class UserError(Exception):
    """Something that the user can put right; its message is one line: where, what, and what to do.

    `key` is a stable name of the kind of mistake, such as `config.unknown-key`, for tests and programs to ask for;
    the message is for people, and its words may change.
    """

    exit_status = 2

    def __init__(self, message: str, key: str = "") -> None:
        super().__init__(" ".join(line.strip() for line in message.splitlines()))
        self.key = key

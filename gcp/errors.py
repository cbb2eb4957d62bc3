"""What is the user's to put right, as one exception: every script prints its one line and exits with status 2."""

from __future__ import annotations

LONGEST = 1200  # characters of a message: what it quotes, such as a name in a damaged file, can be of any length


class UserError(Exception):
    """Something that the user can put right; its message is one line: where, what, and what to do.

    `key` is a stable name of the kind of mistake, such as `config.unknown-key`, for tests and programs to ask for;
    the message is for people, and its words may change.
    """

    exit_status = 2

    def __init__(self, message: str, key: str = "") -> None:
        line = " ".join(line.strip() for line in message.splitlines())
        super().__init__(line if len(line) <= LONGEST else f"{line[: LONGEST // 2]} ... {line[-LONGEST // 2 :]}")
        self.key = key

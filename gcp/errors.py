"""What is the user's to put right, as one exception: every script prints its one line and exits with status 2."""

from __future__ import annotations


class UserError(Exception):
    """Something that the user can put right; its message is one line: where, what, and what to do."""

    exit_status = 2

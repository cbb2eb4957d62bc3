"""What every script's command line shares: its parser, the types of its options, and the one line on a mistake."""

from __future__ import annotations

import argparse
import contextlib
import math
import re
import sys
from typing import Any, Callable, NoReturn

from gcp.errors import UserError


class Parser(argparse.ArgumentParser):
    """A command line whose mistakes are one line, as all others are."""

    def error(self, message: str) -> NoReturn:
        """UserError instead of usage and exit."""
        raise UserError(f"{message}; `{self.prog} --help` says what it takes")


def main(function: Callable[[list[str]], None]) -> NoReturn:
    """Run a script's `function` on the command line's arguments and exit: 0; 2 user error; 130 Ctrl-C."""
    try:
        function(sys.argv[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_status)
    except KeyboardInterrupt:
        print("\ninterrupted: run the same command again to resume", file=sys.stderr)
        sys.exit(130)
    sys.exit(0)


def shape(text: str) -> tuple[int, int, int]:
    """`3,224,224` from a command line as (channels, height, width). UserError: anything else."""
    parts = text.split(",")
    if len(parts) != 3 or not all(p.strip().isdigit() and int(p) > 0 for p in parts):
        raise UserError(f"--input {text}: should be channels,height,width such as 3,224,224")
    return tuple(int(p) for p in parts)


def positive(kind: type) -> Callable[[str], Any]:
    """For a command line: reads an int or a float above 0; the parser reports anything else with the option's name."""

    def number(text: str) -> Any:
        with contextlib.suppress(ValueError):
            if 0 < kind(text) < math.inf:
                return kind(text)
        raise argparse.ArgumentTypeError(f"'{text}' should be a {'whole ' * (kind is int)}number above 0")

    return number


def natural(text: str) -> int:
    """For a command line: reads a whole number, 0 or more; the parser reports anything else with the option's name."""
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise argparse.ArgumentTypeError(f"'{text}' should be a whole number, 0 or more")
    return int(text)


def seeds(text: str) -> list[int]:
    """`0,1,2` from a command line as numbers. UserError: anything else."""
    if not re.fullmatch(r"\d+(,\d+)*", text):
        raise UserError(f"--seeds {text}: should be whole numbers such as 0,1,2")
    return [int(p) for p in text.split(",")]

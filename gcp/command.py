"""What all scripts' command lines share: the parser, its options and their types, and how a script ends.

A user's mistake, an unreadable file, too little memory or a signal ends a script with one line on stderr and an exit
status; only a bug in the program shows a traceback.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import re
import signal
import sys
import threading
import time
from typing import Any, Callable, NoReturn

from gcp.errors import UserError, is_out_of_memory

GUARDED = "GCP_GUARDED"  # set in a process that ends together with its parent, which then prints the message
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)
END_S = 15.0  # granted after a signal to code that Python cannot interrupt


class Parser(argparse.ArgumentParser):
    """A command-line parser that reports mistakes in one line, as the scripts report all others."""

    def error(self, message: str) -> NoReturn:
        """Raise UserError instead of printing the usage and exiting."""
        if len(message) > 300:
            message = message[:300] + "..."
        raise UserError(f"{message}; see `{self.prog} --help`", key="option.value")


def verbs(parser: Parser) -> Callable[[str, Callable[[argparse.Namespace], None], str], argparse.ArgumentParser]:
    """A function that adds a verb (a subcommand) to a script, given its name, the function that it calls, and its help.

    That function returns the verb's own parser, to which options can be added. `parse_args` then gives a namespace
    whose `function` is that of the chosen verb.
    """
    added = parser.add_subparsers(dest="verb", required=True, metavar="VERB", parser_class=Parser)

    def verb(name: str, function: Callable[[argparse.Namespace], None], text: str) -> argparse.ArgumentParser:
        sub = added.add_parser(name, help=text, description=text)
        sub.set_defaults(function=function)
        return sub

    return verb


class Told(KeyboardInterrupt):
    """Raised when a signal tells the process to end; its argument is the signal's number."""


# What a signal raised, once one has come: what imports or libraries make of that need not say where it came from.
_told: list[Told] = []


def main(function: Callable[[list[str]], None]) -> NoReturn:
    """Run a script's `function` on the command-line arguments, and exit with the exit status that `status` returns."""
    _open_streams()
    _end_on_signals()
    code = status(function, sys.argv[1:])
    for descriptor, stream in ((1, sys.stdout), (2, sys.stderr)):
        try:
            stream.flush()
        except OSError:  # Python would try again at exit, and print an error
            os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
    sys.exit(code)


def status(function: Callable[[list[str]], None], argv: list[str]) -> int:
    """The exit status of a script's `function` on these arguments; if it failed, one line is printed on stderr.

    0: done. 1: not done, but not because of a mistake by the user. 2: a mistake that the user can correct. 128 + n:
    ended by signal n, which is 13 if nobody reads the output any more. Any other number: the function's own.
    """
    try:
        function(argv)
        sys.stdout.flush()
        return 0
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException as error:
        code, line = _answer(error)
        with contextlib.suppress(OSError):
            if line:
                print(line, file=sys.stderr, flush=True)
        return code


def _answer(error: BaseException) -> tuple[int, str]:
    """Exit status and line for an error that is not a bug in the program; any other error is raised again."""
    told = next((e for e in (error, error.__context__, *_told) if isinstance(e, KeyboardInterrupt)), None)
    if told is not None:
        number = told.args[0] if isinstance(told, Told) else signal.SIGINT
        again = "\ninterrupted: run the same command again to resume"
        return 128 + number, "" if GUARDED in os.environ else again
    if isinstance(error, UserError):
        return error.exit_status, f"error: {error}"
    if isinstance(error, BrokenPipeError):
        return 128 + signal.SIGPIPE, ""
    words = " ".join(str(error).split())[:300]
    if is_out_of_memory(error):
        return 1, f"error: not enough memory ({words}); use smaller images, batches or networks, or another machine"
    if isinstance(error, RecursionError):
        return 1, f"error: something is nested too deeply ({words}); give a simpler file or network"
    if isinstance(error, UnicodeDecodeError):
        return 2, f"error: a file that should be UTF-8 text is not ({words}); convert it or give another"
    if isinstance(error, UnicodeEncodeError):
        return 2, f"error: this system's encoding cannot represent a name or text ({words}); set LC_ALL=C.UTF-8"
    if isinstance(error, OSError):
        where = "the output" if error.errno in UNWRITABLE else "a file or connection"  # for an error that names no file
        where = os.fsdecode(error.filename) if isinstance(error.filename, (str, bytes)) else where
        what = error.strerror or words
        line = UserError(f"{where}: {what}; fix this or give another, then run the same command again")
        return 2, f"error: {line}"  # UserError shortens it if a name is too long
    raise error


def _open_streams() -> None:
    """Make sure that all three standard streams are open and can print any text.

    Otherwise, the next file to be opened would get the number of a closed stream, and printed text would go into that
    file.
    """
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
        if getattr(sys, name) is None:
            setattr(sys, name, open(descriptor, "w" if descriptor else "r", closefd=False))
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")


def _end_on_signals() -> None:
    """Make the first signal raise `Told`, and end the process `END_S` seconds later if that has not ended it.

    Python runs a signal's handler only between two of its own instructions, so not while MXNet computes, for example.
    Where nobody can catch the exception, such as in a destructor, it is dropped.
    """

    def tell(number: int, _: Any) -> NoReturn:
        for each in SIGNALS:  # further signals must not interrupt the clean-up
            signal.signal(each, signal.SIG_IGN)
        _told.append(Told(number))
        raise Told(number)

    def watch() -> None:
        number = os.read(reads, 1)[0]
        time.sleep(END_S)
        os._exit(128 + number)

    reads, writes = os.pipe()
    os.set_blocking(writes, False)
    signal.set_wakeup_fd(writes)
    threading.Thread(target=watch, daemon=True).start()
    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:  # as it is under nohup, for example
            signal.signal(number, tell)
    hook = sys.unraisablehook
    sys.unraisablehook = lambda caught: None if issubclass(caught.exc_type, KeyboardInterrupt) else hook(caught)


# Types of options


def whole(least: int = 0, most: int = 10**9 - 1) -> Callable[[str], int]:
    """Type of an option: a whole number within bounds; the parser reports anything else with the option's name."""

    def number(text: str) -> int:
        if re.fullmatch(r"\+?[0-9]{1,15}", text) and least <= int(text) <= most:
            return int(text)
        raise argparse.ArgumentTypeError(f"'{text:.40}' must be a whole number from {least} to {most:,}")

    return number


def positive(kind: type, most: float = 10**6) -> Callable[[str], Any]:
    """Type of an option: an int or a float above 0; the parser reports anything else with the option's name."""

    def number(text: str) -> float:
        with contextlib.suppress(ValueError):
            if len(text) < 40 and 0 < float(text) <= most:
                return float(text)
        raise argparse.ArgumentTypeError(f"'{text:.40}' must be a number above 0 and at most {most:,}")

    return whole(1, int(most)) if kind is int else number


natural = whole()
threads = whole(0, 1024)  # 0: usually one per core
batch = whole(1, 65536)


def shape(text: str) -> tuple[int, int, int]:
    """Type of an option: reads `3,224,224` as (channels, height, width). Raises ArgumentTypeError for other text."""
    parts = text.split(",")
    if len(parts) == 3 and all(re.fullmatch(r"\s*[0-9]{1,5}\s*", p) and 1 <= int(p) <= 8192 for p in parts):
        return tuple(int(p) for p in parts)
    raise argparse.ArgumentTypeError(f"'{text:.40}' must be channels,height,width such as 3,224,224, each 1 to 8,192")


def seeds(text: str) -> list[int]:
    """Type of an option: reads `0,1,2` as distinct numbers below 2**31. Raises ArgumentTypeError for other text."""
    found = [int(p) for p in text.split(",")] if re.fullmatch(r"[0-9]{1,10}(,[0-9]{1,10})*", text) else []
    if not found or len(found) > 1000 or max(found) >= 2**31 or len(set(found)) < len(found):
        raise argparse.ArgumentTypeError(
            f"'{text:.40}' must be at most 1,000 distinct whole numbers below {2**31:,}, such as 0,1,2"
        )
    return found


# Arguments that several scripts take


def add_network(parser: argparse.ArgumentParser, many: bool = False) -> None:
    """Add the arguments for a network (or one or more), its input shape and its number of classes."""
    parser.add_argument(
        "network",
        metavar="NETWORK",
        nargs="+" if many else None,
        help="a GluonCV name, an ONNX file or the path prefix of a saved network",
    )
    add_input(parser)
    parser.add_argument("--classes", type=positive(int), help="number of classes (default: the network's own)")


def add_input(parser: argparse.ArgumentParser) -> None:
    """Add the option for a network's input shape."""
    parser.add_argument("--input", type=shape, metavar="C,H,W", help="input shape (default: the network's own)")


def add_overlay(parser: argparse.ArgumentParser) -> None:
    """Add the options that change configurations: overlays, then single keys."""
    parser.add_argument(
        "--overlay",
        action="append",
        default=[],
        metavar="FILE",
        help="a YAML file laid over every configuration; configs/smoke.yaml makes small versions",
    )
    add_set(parser)


def add_set(parser: argparse.ArgumentParser) -> None:
    """Add the option that changes single keys of configurations."""
    parser.add_argument(
        "--set",
        action="extend",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="change single keys of every configuration, e.g. prune.target=0.2",
    )

"""Commands that must not outlive the process that started them, however it ends: on this machine, or over ssh.

Each runs under a guard, `python -m gcp.train.guard COMMAND ...`. When the guard's standard input closes, for whatever
reason and over whatever connection, it sends SIGTERM to the command's process group and then, if need be, SIGKILL;
what the command leaves running when it ends by itself is ended in the same way. The command's temporary folder is
removed with it. The guard exits with the command's code, or with 128 + n if the command was ended by signal n.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from typing import Any, Sequence

import psutil

from gcp.command import GUARDED

GRACE_S = 5.0  # seconds from SIGTERM to SIGKILL
END_S = 10.0  # seconds that a guard has to exit once its input is closed


def guarded(command: Sequence[str]) -> list[str]:
    """The command line that runs a command under a guard, which needs a pipe as its standard input."""
    return [sys.executable, "-m", "gcp.train.guard", *command]


def start(command: Sequence[str], **how: Any) -> subprocess.Popen:
    """Start a guarded command in a session of its own, so that Ctrl-C reaches this process alone."""
    return subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True, **how)


def end(processes: Sequence[subprocess.Popen]) -> None:
    """End guarded commands that `start` started, all at once; what is left of them on this machine is killed."""
    for process in processes:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
    until = time.monotonic() + END_S
    for process in processes:
        try:
            process.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def call(command: Sequence[str]) -> int:
    """Run a command that ends when this process does, and return its exit code."""
    process = start(guarded(command))
    try:
        return process.wait()
    finally:
        end([process])


def run(command: Sequence[str]) -> int:
    """Act as the guard: run the command in a process group that this process leads, and return its exit code."""
    if os.getpgrp() != os.getpid():
        os.setpgid(0, 0)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: None)  # a handler, since the command would inherit SIG_IGN
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "TMPDIR": folder, GUARDED: "1"}
        try:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, env=environment)
        except OSError as error:
            print(f"error: {command[0]}: cannot be started: {error.strerror}", file=sys.stderr)
            return 2
        threading.Thread(target=_end_with_input, daemon=True).start()
        code = process.wait()
        _end_others()
    return code if code >= 0 else 128 - code


def _end_with_input() -> None:
    while os.read(0, 1024):
        pass
    _end_others()


def _end_others() -> None:
    """End all other processes of this process group: SIGTERM, and after `GRACE_S` SIGKILL to those that are left."""
    until = time.monotonic() + GRACE_S
    if _others():
        os.killpg(0, signal.SIGTERM)
    while _others() and time.monotonic() < until:
        time.sleep(0.05)
    for pid in _others():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _others() -> list[int]:
    """The other processes of this group that run; those that have ended may wait for their parent as zombies."""
    found = []
    for pid in set(psutil.pids()) - {os.getpid()}:
        with contextlib.suppress(ProcessLookupError, PermissionError, psutil.Error):
            if os.getpgid(pid) == os.getpgrp() and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                found.append(pid)
    return found


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))

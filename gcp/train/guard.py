"""Commands that must not outlive whoever started them, however that one ends: on this machine, or another by ssh.

Between the two is a guard, `python -m gcp.train.guard COMMAND ...`. When its standard input closes, for whatever reason
and over whatever connection, it ends the command's process group, SIGKILL after SIGTERM. What the command puts into its
temporary folder goes with it. The guard exits with the command's code, 128 + n for signal n.
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

from gcp.command import GUARDED

GRACE_S = 5.0  # from SIGTERM to SIGKILL
END_S = 10.0  # for a guard to be gone after its input has been closed


def guarded(command: Sequence[str]) -> list[str]:
    """The command under a guard, which wants a pipe as its standard input."""
    return [sys.executable, "-m", "gcp.train.guard", *command]


def start(command: Sequence[str], **how: Any) -> subprocess.Popen:
    """Start a guarded command in a session of its own, so that Ctrl-C comes to this process alone."""
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
    """Run a command that ends with this process; its exit code."""
    process = start(guarded(command))
    try:
        return process.wait()
    finally:
        end([process])


def run(command: Sequence[str]) -> int:
    """What the guard does: run the command in this process's group, which becomes one of its own; its exit code."""
    if os.getpgrp() != os.getpid():
        os.setpgid(0, 0)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: None)  # a handler, as the command would inherit SIG_IGN
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "TMPDIR": folder, GUARDED: "1"}
        try:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, env=environment)
        except OSError as error:
            print(f"error: {command[0]}: cannot be started: {error.strerror}", file=sys.stderr)
            return 2
        threading.Thread(target=_end_with_input, args=(process,), daemon=True).start()
        code = process.wait()
    return code if code >= 0 else 128 - code


def _end_with_input(process: subprocess.Popen) -> None:
    while os.read(0, 1024):
        pass
    os.killpg(0, signal.SIGTERM)
    try:
        process.wait(GRACE_S)
    except subprocess.TimeoutExpired:
        process.kill()


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))

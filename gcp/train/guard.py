"""Runs a command that must not outlive whoever asked for it: `python -m gcp.train.guard COMMAND ...`.

When standard input closes, for whatever reason and over whatever connection, the command's process group ends. What
the command puts into its temporary folder goes with it. Exits with the command's code, 128 + n for signal n.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
from typing import List

GRACE_S = 5.0  # from SIGTERM to SIGKILL


def run(command: List[str]) -> int:
    """Run the command in this process's group, which becomes one of its own; its exit code."""
    if os.getpgrp() != os.getpid():
        os.setpgid(0, 0)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: None)  # a handler, as the command would inherit SIG_IGN
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, env={**os.environ, "TMPDIR": folder})
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

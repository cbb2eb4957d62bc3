"""Starting and watching the processes of a job: a scheduler, servers and workers, here or on other machines over ssh.

A dead worker leaves the others waiting for ever: so one process watches them all, ends the whole group when one ends
badly, and starts it again; the workers go on from worker 0's last checkpoint. MXNet's own launcher does not run on
Python 3.9 and younger. Also here: what the environment tells a worker about itself.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import Deque, Dict, List, Optional, Sequence, Tuple

from gcp.errors import UserError

SSH = "ssh -o BatchMode=yes -o ServerAliveInterval=15"
SERVE = [sys.executable, "-c", "import mxnet"]  # which does not return in a scheduler or server
FINAL = (0, UserError.exit_status, 130)  # exit codes after which there is no point in starting again
SILENT = -1
END_S = 10.0  # for a process to end once its guard was told to end it
# What a process on another machine takes over from this one's environment.
PASSED = ("DMLC_", "MXNET_", "PS_", "OMP_", "PYTHONPATH")


@dataclass(frozen=True)
class Job:
    """Which of `n` workers this process is, and which of the `local_n` workers on its machine."""

    rank: int = 0
    n: int = 1
    local_rank: int = 0
    local_n: int = 1


def job() -> Job:
    """What the environment says; a process by itself if it says nothing."""
    if "GCP_RANK" not in os.environ:
        return Job()
    return Job(*(int(os.environ[name]) for name in ("GCP_RANK", "DMLC_NUM_WORKER", "GCP_LOCAL_RANK", "GCP_LOCAL_N")))


class Member:
    """One process of a job, under a guard that ends it with this process, on whatever machine it is."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        environment: Dict[str, str],
        host: Optional[str],
        ssh: str,
        shown: bool,
        observed: bool,
    ) -> None:
        guarded = [sys.executable, "-m", "gcp.train.guard", *command]
        if host is not None:
            passed = {k: v for k, v in os.environ.items() if k.startswith(PASSED)}
            words = [f"{k}={v}" for k, v in {**passed, **environment}.items()]
            script = f"cd {shlex.quote(os.getcwd())} && exec env {shlex.join(words)} {shlex.join(guarded)}"
            guarded = [*shlex.split(ssh), host, script]
        self.name = name if host is None else f"{name} on {host}"
        self.spoke_at = time.monotonic()
        self.tail: Deque[str] = deque(maxlen=20)
        piped = not shown or observed
        self.process = subprocess.Popen(
            guarded,
            env={**os.environ, **environment},
            stdin=subprocess.PIPE,
            start_new_session=True,
            stdout=subprocess.PIPE if piped else None,
            stderr=subprocess.PIPE if shown and observed else (subprocess.STDOUT if piped else None),
        )
        pipes = ((self.process.stdout, sys.stdout), (self.process.stderr, sys.stderr))
        self._readers = [
            threading.Thread(target=self._pass_on if shown else self._keep, args=pair, daemon=True)
            for pair in pipes
            if pair[0] is not None
        ]
        for reader in self._readers:
            reader.start()

    def _keep(self, pipe, _) -> None:
        with pipe:
            for line in pipe:
                self.tail.append(line.decode(errors="replace").rstrip())

    def _pass_on(self, pipe, target) -> None:
        with pipe:
            while True:  # not by lines: a progress bar has none
                content = os.read(pipe.fileno(), 65536)
                if not content:
                    return
                self.spoke_at = time.monotonic()
                target.write(content.decode(errors="replace"))
                target.flush()

    def end(self) -> None:
        """Tell the guard to end the process; `wait` waits for it."""
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()

    def wait(self, until: float) -> None:
        """Wait until that time, then kill what is left on this machine; then for its last words."""
        try:
            self.process.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        for reader in self._readers:
            reader.join(1.0)


def supervise(
    command: Sequence[str],
    per_host: int = 1,
    hosts: Sequence[str] = (),
    ssh: str = SSH,
    restarts: int = 3,
    timeout_s: Optional[float] = None,
) -> int:
    """Run a command as `per_host` workers on this machine, or on each of `hosts`; its exit code.

    When a worker, a server or the scheduler ends badly, or worker 0 says nothing for `timeout_s`, all are ended and
    started again, up to `restarts` times; not after a user's mistake (2) or Ctrl-C (130). Worker 0 has the terminal;
    of another one that fails, the last lines are shown. The hosts need this working directory, this Python and the data
    at the same paths; the run's folder is only on worker 0's, which is the first.
    """
    command = [sys.executable, *command] if command[0].endswith(".py") else list(command)
    stop = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        for left in range(restarts, -1, -1):
            code, who, tail = _attempt(command, per_host, hosts, ssh, timeout_s)
            if code:
                _say(*(f"[{who}] {line}" for line in tail))
            if code in FINAL:
                return code
            what = f"has said nothing for {timeout_s:g} s" if code == SILENT else f"ended with {code}"
            _say(
                f"launch: {who} {what}; "
                + (
                    f"starting again from the last checkpoint (at most {left} times more)"
                    if left
                    else "run the same command again to go on from the last one"
                )
            )
        return 1 if code == SILENT else code
    except KeyboardInterrupt:
        _say("\ninterrupted: run the same command again to resume")
        return 130
    finally:
        signal.signal(signal.SIGTERM, stop)


def _say(*lines: str) -> None:
    for line in lines:
        print(line, file=sys.stderr, flush=True)


def _attempt(
    command: List[str], per_host: int, hosts: Sequence[str], ssh: str, timeout_s: Optional[float]
) -> Tuple[int, str, List[str]]:
    """Start everything, wait for the end, end what is left: exit code (or SILENT), whose, its last lines if unseen."""
    places: Sequence[Optional[str]] = hosts or (None,)
    n = len(places) * per_host
    common = {
        "DMLC_PS_ROOT_URI": _address(hosts),
        "DMLC_PS_ROOT_PORT": str(_free_port()),
        "DMLC_NUM_WORKER": str(n),
        "DMLC_NUM_SERVER": str(len(places)),
        **({} if hosts else {"DMLC_NODE_HOST": "127.0.0.1"}),
    }
    members: List[Member] = []

    def start(name: str, what: Sequence[str], host: Optional[str], **environment: str) -> Member:
        members.append(
            Member(name, what, {**common, **environment}, host, ssh, name == "worker 0", timeout_s is not None)
        )
        return members[-1]

    try:
        workers = [
            start(
                f"worker {h * per_host + k}",
                command,
                host,
                DMLC_ROLE="worker",
                GCP_RANK=str(h * per_host + k),
                GCP_LOCAL_RANK=str(k),
                GCP_LOCAL_N=str(per_host),
            )
            for h, host in enumerate(places)
            for k in range(per_host)
        ]
        others = [
            start("scheduler", SERVE, None, DMLC_ROLE="scheduler"),
            *(
                start(f"server {number}", SERVE, host, DMLC_ROLE="server", OMP_NUM_THREADS="1")
                for number, host in enumerate(places)
            ),
        ]

        def failed() -> List[Member]:
            return [m for m in workers if m.process.poll()] + [m for m in others if m.process.poll() is not None]

        while not failed():
            if all(w.process.poll() == 0 for w in workers):
                return 0, "", []
            if timeout_s is not None and time.monotonic() - workers[0].spoke_at > timeout_s:
                return SILENT, workers[0].name, []
            time.sleep(0.05)
        time.sleep(0.5)  # what is wrong for all soon ends all, and worker 0 has shown it already
        first = failed()[0]
        first.wait(time.monotonic())
        return first.process.returncode or 1, first.name, list(first.tail)
    finally:
        _end(members)


def _end(members: List[Member]) -> None:
    """Have all guards end their processes, at once; kill what is still here after `END_S`."""
    for member in members:
        member.end()
    until = time.monotonic() + END_S
    for member in members:
        member.wait(until)


def _address(hosts: Sequence[str]) -> str:
    """This machine's address as the hosts see it. UserError: the first host's name is not known."""
    if not hosts:
        return "127.0.0.1"
    name = hosts[0].rpartition("@")[2]
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:  # sends nothing: only the route is looked up
            probe.connect((socket.gethostbyname(name), 9))
            return probe.getsockname()[0]
    except OSError as error:
        raise UserError(
            f"--hosts: '{name}' is not known here or cannot be reached ({error.strerror or error}); give "
            "names or addresses that ssh and this machine know"
        ) from None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]

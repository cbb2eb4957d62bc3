"""Starting and watching the processes of a job: a scheduler, servers and workers, here or on other machines over ssh.

When a worker dies, the others wait forever. So one process watches them all, ends the whole group when one of them
fails, and restarts it; the workers resume from the last checkpoint of rank 0. MXNet's own launcher does not run on
Python 3.9 and later. This module also reads what the environment tells a worker about itself.
"""

from __future__ import annotations

import os
import shlex
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import Mapping, Optional, Sequence

from gcp.errors import UserError
from gcp.train import guard

SSH = "ssh -o BatchMode=yes -o ServerAliveInterval=15"
SERVE = [sys.executable, "-c", "import mxnet"]  # an import that does not return in a scheduler or server
FINAL = (0, UserError.exit_status, 130, 143)  # exit codes after which there is no point in restarting
SILENT = -1
# Prefixes of the environment variables that are passed on to processes on other machines.
PASSED = ("DMLC_", "MXNET_", "PS_", "OMP_", "PYTHONPATH")


@dataclass(frozen=True)
class Job:
    """This worker's rank among the `world_size` workers, and among the `local_size` workers on its machine."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_size: int = 1


def job() -> Job:
    """This process's `Job`, as the environment describes it; a job of one process if the environment does not."""
    if "GCP_RANK" not in os.environ:
        return Job()
    return Job(*(int(os.environ[name]) for name in ("GCP_RANK", "DMLC_NUM_WORKER", "GCP_LOCAL_RANK", "GCP_LOCAL_N")))


class Member:
    """One process of a job, under a guard, with the last lines of its output if that is not shown."""

    def __init__(
        self, name: str, command: Sequence[str], environment: Mapping[str, str], host: Optional[str], ssh: str
    ) -> None:
        self.name = name if host is None else f"{name} on {host}"
        self.command, self.environment = guard.guarded(command), {**os.environ, **environment}
        if host is not None:
            passed = {k: v for k, v in os.environ.items() if k.startswith(PASSED)}
            words = [f"{k}={v}" for k, v in {**passed, **environment}.items()]
            script = f"cd {shlex.quote(os.getcwd())} && exec env {shlex.join(words)} {shlex.join(self.command)}"
            self.command = [*shlex.split(ssh), host, script]
        self.spoke_at = time.monotonic()
        self.tail: deque[str] = deque(maxlen=20)

    def start(self, shown: bool, observed: bool) -> None:
        """Start the process. `shown`: print its output; `observed`: record in `spoke_at` when it last printed any."""
        pipe = subprocess.PIPE if observed else None
        out, err = (pipe, pipe) if shown else (subprocess.PIPE, subprocess.STDOUT)
        self.process = guard.start(self.command, env=self.environment, stdout=out, stderr=err)
        self._readers = [
            threading.Thread(target=self._pass_on if shown else self._keep, args=pair, daemon=True)
            for pair in ((self.process.stdout, sys.stdout), (self.process.stderr, sys.stderr))
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
            while content := os.read(pipe.fileno(), 65536):  # not line by line: a progress bar prints no line ends
                self.spoke_at = time.monotonic()
                target.write(content.decode(errors="replace"))
                target.flush()

    def last_words(self) -> list[str]:
        """The last lines of output of a process that has ended."""
        for reader in self._readers:
            reader.join(1.0)
        return list(self.tail)


def supervise(
    command: Sequence[str],
    per_host: int = 1,
    hosts: Sequence[str] = (),
    ssh: str = SSH,
    restarts: int = 3,
    timeout_s: Optional[float] = None,
) -> int:
    """Run a command as `per_host` workers on this machine, or on each of `hosts`, and return its exit code.

    When a worker, a server or the scheduler fails, or rank 0 prints nothing for `timeout_s` seconds, all are ended and
    restarted, up to `restarts` times, except after a user's mistake (exit code 2) or a signal. Rank 0 has the terminal;
    if another process fails, its last lines are shown. The hosts need this working directory, this Python and the data
    at the same paths; the run's folder exists only on the host of rank 0, which is the first.
    """
    command = [sys.executable, *command] if command[0].endswith(".py") else list(command)
    for left in range(restarts, -1, -1):
        code, who, tail = _attempt(_members(command, per_host, hosts, ssh), timeout_s)
        if code:
            _say(*(f"[{who}] {line}" for line in tail))
        if code in FINAL:
            return code
        what = f"has printed nothing for {timeout_s:g} s" if code == SILENT else f"exited with code {code}"
        then = (
            f"restarting from the last checkpoint (restarts left, including this one: {left})"
            if left
            else "run the same command again to resume from the last checkpoint"
        )
        _say(f"launch: {who} {what}; {then}")
    return 1 if code == SILENT else code


def _say(*lines: str) -> None:
    for line in lines:
        print(line, file=sys.stderr, flush=True)


def _members(command: Sequence[str], per_host: int, hosts: Sequence[str], ssh: str) -> list[Member]:
    """The workers by rank, then the scheduler, then a server for each machine."""
    places: Sequence[Optional[str]] = hosts or (None,)
    common = {
        "DMLC_PS_ROOT_URI": address(hosts),
        "DMLC_PS_ROOT_PORT": str(_free_port()),
        "DMLC_NUM_WORKER": str(len(places) * per_host),
        "DMLC_NUM_SERVER": str(len(places)),
        **({} if hosts else {"DMLC_NODE_HOST": "127.0.0.1"}),
    }

    def worker(rank: int) -> Member:
        own = {"GCP_RANK": str(rank), "GCP_LOCAL_RANK": str(rank % per_host), "GCP_LOCAL_N": str(per_host)}
        environment = {**common, "DMLC_ROLE": "worker", **own}
        return Member(f"worker {rank}", command, environment, places[rank // per_host], ssh)

    server = {**common, "DMLC_ROLE": "server", "OMP_NUM_THREADS": "1"}
    return [
        *(worker(rank) for rank in range(len(places) * per_host)),
        Member("scheduler", SERVE, {**common, "DMLC_ROLE": "scheduler"}, None, ssh),
        *(Member(f"server {n}", SERVE, server, host, ssh) for n, host in enumerate(places)),
    ]


def _attempt(members: list[Member], timeout_s: Optional[float]) -> tuple[int, str, list[str]]:
    """Start all members, wait, end what is left: the exit code (or SILENT), whose it is, its last lines if unseen."""
    workers = [m for m in members if m.environment["DMLC_ROLE"] == "worker"]
    started: list[Member] = []

    def failed() -> Optional[Member]:
        ended = (m for m in members if m.process.poll() or (m not in workers and m.process.poll() is not None))
        return next(ended, None)

    try:
        for member in members:
            member.start(member is workers[0], timeout_s is not None)
            started.append(member)
        while failed() is None:
            if all(w.process.poll() == 0 for w in workers):
                return 0, "", []
            if timeout_s is not None and time.monotonic() - workers[0].spoke_at > timeout_s:
                return SILENT, workers[0].name, []
            time.sleep(0.05)
        time.sleep(0.5)  # an error common to all soon ends all of them, and rank 0 has already shown it
        first = failed()
        return first.process.returncode or 1, first.name, first.last_words()
    finally:
        guard.end([m.process for m in started])


def address(hosts: Sequence[str]) -> str:
    """The address at which all hosts can reach this machine; not a loopback address if any host is another machine.

    UserError: a host's name is unknown, or there is only a loopback address for hosts that may be other machines.
    """
    names = [host.rpartition("@")[2] for host in hosts]
    found = [_address_towards(name) for name in names]
    outside = [address for address in found if not address.startswith("127.")]
    here = {"localhost", socket.gethostname(), socket.getfqdn()}
    unsure = [name for name in names if name not in here and not name.startswith("127.")]
    if len(names) > 1 and unsure and not outside:
        raise UserError(
            f"--hosts: {', '.join(names)} all resolve here to a loopback address of this machine, which other "
            f"machines cannot reach; map {unsure[0]} to a network address in /etc/hosts, or give addresses, not names",
            key="launch.loopback",
        )
    return outside[0] if outside else "127.0.0.1"


def _address_towards(name: str) -> str:
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:  # sends nothing: only the route is looked up
            probe.connect((socket.gethostbyname(name), 9))
            return probe.getsockname()[0]
    except (OSError, UnicodeError) as error:
        raise UserError(
            f"--hosts: '{name}' is unknown here or cannot be reached ({getattr(error, 'strerror', None) or error}); "
            "give names or addresses that both ssh and this machine can resolve",
            key="launch.unknown-host",
        ) from None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]

"""Watching the processes of a job, with processes that do next to nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gcp import errors
from gcp.train import launch

ROOT = Path(launch.__file__).parents[2]
SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]


@pytest.fixture(autouse=True)
def without_servers(monkeypatch):
    monkeypatch.setattr(launch, "SERVE", SLEEP)


def worker(tmp_path, text):
    """A script that knows its `rank` and the `attempt`, both from 0."""
    path = tmp_path / "worker.py"
    path.write_text(f"""
import os, sys, time
rank, folder = int(os.environ["GCP_RANK"]), {str(tmp_path)!r}
attempt = sum(name.startswith(f"begun-{{rank}}-") for name in os.listdir(folder))
open(f"{{folder}}/begun-{{rank}}-{{attempt}}", "w").write(os.environ["TMPDIR"])
{text}""")
    return [str(path)]


def begun(tmp_path):
    return sorted(path.name for path in tmp_path.glob("begun-*"))


@pytest.mark.slow
def test_a_job_is_started_again_when_a_worker_dies(tmp_path, capfd):
    command = worker(
        tmp_path,
        "print('hello from', rank)\nif attempt < 2:\n    os.kill(os.getpid(), 9) if rank == 1 else time.sleep(60)",
    )
    assert launch.supervise(command, 2, restarts=2) == 0
    assert begun(tmp_path) == [f"begun-{r}-{a}" for r in (0, 1) for a in (0, 1, 2)]
    out, err = capfd.readouterr()
    assert out == "hello from 0\n" * 3
    assert (
        "launch: worker 1 exited with code 137; restarting from the last checkpoint "
        "(restarts left, including this one: 1)" in err
    )
    folders = [Path(path.read_text()) for path in tmp_path.glob("begun-*")]
    assert len(set(folders)) == 6 and not any(folder.exists() for folder in folders)


@pytest.mark.slow
def test_the_exit_code_passes_through_and_unseen_last_lines_are_shown(tmp_path, capfd):
    command = worker(
        tmp_path, "if rank == 1:\n    print('error: no such thing', file=sys.stderr); sys.exit(2)\ntime.sleep(60)"
    )
    assert launch.supervise(command, 2, restarts=2) == 2
    assert len(begun(tmp_path)) == 2, "a user's mistake is not tried again"
    assert capfd.readouterr().err == "[worker 1] error: no such thing\n"
    assert launch.supervise(worker(tmp_path, "sys.exit(7)"), 1, restarts=0) == 7


def test_a_server_that_dies_ends_the_job(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(launch, "SERVE", [sys.executable, "-c", "print('no memory'); raise SystemExit(3)"])
    assert launch.supervise(worker(tmp_path, "time.sleep(60)"), 1, restarts=0) == 3
    assert "[scheduler] no memory\nlaunch: scheduler exited with code 3; run the same command" in capfd.readouterr().err


@pytest.mark.slow
def test_ctrl_c_ends_all_processes_of_a_job(tmp_path):
    command = worker(tmp_path, "open(f'{folder}/pid-{rank}', 'w').write(str(os.getpid()))\ntime.sleep(60)")
    code = (
        f"import sys; from gcp import command; from gcp.train import launch; launch.SERVE = {SLEEP!r}; "
        f"command.main(lambda argv: sys.exit(launch.supervise({command!r}, 2)))"
    )
    job = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    while len(pids := [path.read_text() for path in tmp_path.glob("pid-*")]) < 2 or not all(pids):
        time.sleep(0.02)
    job.send_signal(signal.SIGINT)
    _, err = job.communicate(timeout=20)
    assert job.returncode == 130 and err == "\ninterrupted: run the same command again to resume\n"
    assert not any(is_running(pid) for pid in pids)


def is_running(pid):
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.slow
def test_a_silent_job_is_ended(tmp_path, capfd):
    command = worker(tmp_path, "print('here', flush=True)\ntime.sleep(60 if attempt == 0 else 0)")
    assert launch.supervise(command, 1, restarts=1, timeout_s=1.0) == 0
    out, err = capfd.readouterr()
    assert out == "here\nhere\n" and "worker 0 has printed nothing for 1 s" in err


def test_commands_reach_another_machine_word_by_word(tmp_path, monkeypatch):
    fake = tmp_path / "ssh"
    fake.write_text(
        f'#!/bin/sh\necho "$@" >> {tmp_path}/called\nwhile [ $# -gt 2 ]; do shift; done\n'
        'cd / && exec env -i PATH="$PATH" sh -c "$2"\n'
    )  # nothing of here is there
    fake.chmod(0o755)
    monkeypatch.setenv("DMLC_INTERFACE", "lo")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    script = tmp_path / "it's $HOME.py"
    script.write_text(
        "import os, sys\nopen(sys.argv[1] + os.environ['GCP_RANK'], 'w').write(repr((sys.argv[2:], "
        "os.getcwd(), os.environ['DMLC_INTERFACE'], os.environ['DMLC_NUM_WORKER'])))\n"
    )
    words = ["a b", "$HOME", "it's", "--set", "prune.lam=[0.1]", ""]
    assert (
        launch.supervise(
            [str(script), str(tmp_path / "out"), *words], 2, ["me@localhost", "127.0.0.1"], f"{fake} -p 22"
        )
        == 0
    )
    for rank in range(4):
        assert (tmp_path / f"out{rank}").read_text() == repr((words, os.getcwd(), "lo", "4"))
    assert "-p 22 me@localhost cd " in (tmp_path / "called").read_text()


def test_an_unknown_host_is_a_users_mistake():
    with pytest.raises(errors.UserError, match="no-such-host.invalid") as caught:
        launch.supervise(["x.py"], 1, ["no-such-host.invalid"])
    assert caught.value.key == "launch.unknown-host"


@pytest.mark.parametrize(
    "known, address",
    [
        ({"here": "127.0.1.1", "b": "192.0.2.7"}, "192.0.2.1"),  # the first one is this machine
        ({"b": "192.0.2.7", "here": "127.0.1.1"}, "192.0.2.1"),
        ({"localhost": "127.0.0.1", "127.0.0.1": "127.0.0.1"}, "127.0.0.1"),
        ({"here": "127.0.1.1"}, "127.0.0.1"),
        ({"here": "127.0.1.1", "b": "127.0.0.1"}, None),
    ],
)
def test_the_address_is_one_that_every_host_can_reach(monkeypatch, known, address):
    def towards(name):
        return "192.0.2.1" if known[name].startswith("192.") else "127.0.0.1"

    monkeypatch.setattr(launch, "_address_towards", towards)
    monkeypatch.setattr(launch.socket, "gethostname", lambda: "here")
    monkeypatch.setattr(launch.socket, "getfqdn", lambda: "here.example")
    hosts = [f"me@{name}" for name in known]
    if address is not None:
        assert launch.address(hosts) == address
        return
    with pytest.raises(errors.UserError) as caught:
        launch.address(hosts)
    assert caught.value.key == "launch.loopback"


def test_a_command_that_cannot_be_started(capfd):
    assert launch.supervise(["/no/such"], 1) == 2
    assert "error: /no/such: cannot be started" in capfd.readouterr().err


def test_what_a_worker_knows_of_itself(monkeypatch):
    assert launch.job() == launch.Job(0, 1, 0, 1)
    for name, value in (("GCP_RANK", "5"), ("DMLC_NUM_WORKER", "8"), ("GCP_LOCAL_RANK", "1"), ("GCP_LOCAL_N", "4")):
        monkeypatch.setenv(name, value)
    assert launch.job() == launch.Job(5, 8, 1, 4)


@pytest.mark.parametrize(
    "handler, ends, expected",
    [
        ("lambda *_: None", "[time.sleep(1) for _ in range(60)]", 137),
        ("signal.SIG_IGN", "[time.sleep(1) for _ in range(60)]", 137),  # which the child inherits
        ("signal.SIG_IGN", "sys.stdin.read()", 0),
    ],
)
def test_a_guard_ends_with_its_input(handler, ends, expected):
    """Also a command that does not heed SIGTERM, and what it has started, even if the command itself is gone."""
    text = (
        f"import os, signal, subprocess, sys, time; signal.signal(signal.SIGTERM, {handler}); "
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']); "
        f"print(os.getpid(), child.pid, flush=True); {ends}"
    )
    command = [sys.executable, "-c", text]
    code = f"import sys; from gcp.train import guard; guard.GRACE_S = 0.2; sys.exit(guard.run({command!r}))"
    guard = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    pids = guard.stdout.readline().split()
    guard.stdin.close()
    assert guard.wait(10) == expected
    time.sleep(0.1)
    assert not any(is_running(pid) for pid in pids)
    guard.stdout.close()

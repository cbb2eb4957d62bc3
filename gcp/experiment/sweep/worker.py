"""How a machine of a cluster computes a task, and how the files of the run are returned."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, Callable, Dict, Iterator

import filelock

from gcp.errors import UserError
from gcp.experiment import record as records
from gcp.experiment.sweep.base import Task
from gcp.storage import locked, parse_json, replacing, write_json, write_text, yaml_text
from gcp.train import guard

LOCK_S = 120.0  # to wait for the lock of a run whose machine has died, which a file server keeps for a while
SAID = 20  # number of last lines that are kept of a run
RUN = ("run", "dense")  # the folders of a run


def execute(job: Dict[str, Any], where: str, scratch: str, dropped: Callable[[], bool] = lambda: False) -> dict:
    """Run a task's job on this machine; returns its exit code, `where`, and its last lines.

    If the job's folder is not shared, it runs in `scratch`, and the files of a successful run are returned too. When
    `dropped` says that nobody wants the run any more, it is ended.
    """
    output = None if job["folder"] else scratch
    run, dense = (Path(job["folder"] or scratch, job[key] if job["folder"] else Path(job[key]).name) for key in RUN)
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        said = stack.enter_context(tempfile.TemporaryFile())
        environment = {**os.environ, **stack.enter_context(_gpus(job["gpus"]))}
        path = Path(folder) / f"{job['name']}.yaml"
        path.write_text(job["config"], encoding="utf-8")
        for name, text in job["files"].items():
            run.mkdir(parents=True, exist_ok=True)
            write_text(run / name, text)
        _wait_for_lock(run, dropped)
        command = [sys.executable, "-m", "gcp.experiment.start", str(path), *job["options"]]
        command += ["--fingerprint", job["fingerprint"], "--source", job["source"]]
        command += ["--output", output] if output else []
        how = {"stdout": subprocess.DEVNULL, "stderr": said, "env": environment, "cwd": job["folder"]}
        process = guard.start(guard.guarded(command), **how)
        try:
            while process.poll() is None and not dropped():
                time.sleep(0.2)
        finally:
            guard.end([process])
        said.seek(max(0, said.seek(0, os.SEEK_END) - 10_000))
        lines = said.read().decode(errors="replace").replace("\r", "\n").split("\n")
    lines = [line for line in lines if line.strip() and "%|" not in line][-SAID:]  # without progress bars
    result = {"code": process.returncode, "where": where, "said": lines}
    if output and process.returncode == 0:
        result["files"] = {"run": _contents(run), "dense": _contents(dense)}
    return result


def _contents(folder: Path) -> Dict[str, bytes]:
    """A finished run's files, without locks, checkpoints, and files that the receiver writes itself."""
    paths = [path for path in sorted(folder.glob("*")) if path.is_file() and _is_brought(path.name)]
    return {path.name: path.read_bytes() for path in paths}


def _is_brought(name: str) -> bool:
    """Whether a file of this name in a run's folder is sent to another machine."""
    left = name in ("lock", "config.yaml") or name.endswith((".lock", ".states", ".checkpoint"))
    return bool(re.fullmatch(r"\w[\w.+-]{0,200}", name, re.ASCII)) and not left


def _wait_for_lock(run: Path, dropped: Callable[[], bool]) -> None:
    """Wait for an earlier process of this run, which ends once its worker has died; its lock may outlive it a while.

    After `LOCK_S` seconds, it is left to the run itself to report that the folder is in use.
    """
    lock, until = filelock.FileLock(str(run / "lock")), time.monotonic() + LOCK_S
    while (run / "lock").exists() and time.monotonic() < until and not dropped():
        with contextlib.suppress(filelock.Timeout), lock.acquire(timeout=1):
            return


_TAKEN: set = set()  # GPUs in use by runs of this worker
_TAKING = threading.Lock()


@contextlib.contextmanager
def _gpus(n: int) -> Iterator[Dict[str, str]]:
    """The environment variables with which a run sees `n` GPUs of this worker that none of its other runs uses.

    The scheduler counts GPUs, so that enough are free; which ones a run gets is decided here.
    """
    visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    with _TAKING:
        free = (name for name in (visible or map(str, range(1024))) if name not in _TAKEN)
        mine = [name for name, _ in zip(free, range(n))]
        _TAKEN.update(mine)
    try:
        yield {"CUDA_VISIBLE_DEVICES": ",".join(mine), "CUDA_DEVICE_ORDER": "PCI_BUS_ID"} if n else {}
    finally:
        with _TAKING:
            _TAKEN.difference_update(mine)


def receive(task: Task, files: Dict[str, Dict[str, bytes]]) -> None:
    """Write the files of a run from another machine as if it had been computed here, its record last.

    UserError: the record received is not valid or not of this run, or the folder cannot be written.
    """
    path, dense = records.run_path(task.cfg), records.dense_path(task.cfg)
    run = {name: content for name, content in files["run"].items() if _is_brought(name)}
    with locked(path, wait=False):
        about = f"the record of {task.name} from a worker"
        record = parse_json(run.pop(records.RECORD), records.Record, about, "run the sweep again")
        if record.fingerprint != task.cfg.fingerprint():
            raise UserError(f"{about} belongs to another run; run the sweep again", key="sweep.record")
        with locked(dense):  # shared by several runs, each of which may have trained it on another worker
            for name, content in files["dense"].items():
                if _is_brought(name) and not (dense / name).exists():
                    _write(dense / name, content)
        for name, content in run.items():
            _write(path / name, content)
        if not (path / records.RECORD).exists():
            write_text(path / "config.yaml", yaml_text(task.cfg.model_dump(mode="json")))
            config = {**record.config, "output": task.cfg.output}
            write_json(path / records.RECORD, {**record.model_dump(mode="json"), "config": config})


def _write(path: Path, content: bytes) -> None:
    with replacing(path) as temporary:
        temporary.write_bytes(content)

"""Where the runs of a sweep are computed: on this machine, by dask's workers, or by SLURM, behind one contract.

Scheduling, placement and what happens when a machine dies are the engines' own; here is what they are told. A task is
sent as plain data, and a worker runs it in a process under a guard: so the worker never loads MXNet, the threads are
the configuration's, and what ends the worker ends the run.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import hashlib
import importlib
import logging
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Callable, ClassVar, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple, Union

import filelock
import yaml

import gcp
from gcp.errors import UserError
from gcp.experiment import record as records
from gcp.experiment import source
from gcp.experiment.config import Config
from gcp.registry import Registry
from gcp.storage import locked, parse_json, read_json, replacing, write_json, write_text
from gcp.train import guard

CONNECT_S = 10.0  # a busy machine takes some seconds to answer
POLL_S = 4.0  # between two questions to all workers
LOCK_S = 120.0  # for the lock of a run whose machine has died: a file server keeps it for a while
SLURM_MINUTES = 24 * 60  # of a job; the environment's SBATCH_TIMELIMIT goes before it
SLURM_TRIES = 4  # of a job that ends without its result
SAID = 20  # last lines of a run that failed
RUN = ("run", "dense")  # the folders of a run


class Setup(NamedTuple):
    """What the command line says: the script that runs an experiment here, how many at once, whether to fetch runs."""

    script: Path
    jobs: Optional[int] = None
    collect: bool = False


@dataclass(frozen=True)
class Task:
    """One experiment to be run, or to be timed: where its configuration comes from, and what it is."""

    path: Path
    overrides: Tuple[str, ...]
    overlays: Tuple[str, ...]
    cfg: Config
    timed: bool = False

    @property
    def what(self) -> str:
        """What is done with the experiment."""
        return "measure" if self.timed else "run"

    @property
    def name(self) -> str:
        """The experiment for people."""
        return f"{self.cfg.name} seed {self.cfg.seed}"

    @property
    def key(self) -> str:
        """The same for the same work into the same folder, so that nothing is computed twice."""
        cfg, place = self.cfg, hashlib.sha256(os.path.abspath(self.cfg.output).encode()).hexdigest()[:8]
        # What it starts from is not there yet, and cannot be part of its name.
        path = f"{cfg.name}-seed{cfg.seed}-late" if cfg.model.is_pattern else records.run_path(cfg).name
        return f"gcp-{self.what}-{path}-{place}"

    @property
    def gpus(self) -> int:
        """GPUs that it takes."""
        return len(self.cfg.gpus)

    @property
    def cores(self) -> int:
        """Cores that it takes; 0: all of a machine's."""
        return self.cfg.threads * max(1, self.gpus)

    def job(self, placed: bool, shared: bool) -> Dict[str, Any]:
        """The task as plain data. `placed`: GPUs are given to it on the worker, whose numbers it then does not choose.

        Where the folder is not `shared`, a run to be timed brings its record.
        """
        values = self.cfg.model_dump(mode="json", exclude_unset=True)
        if placed and self.gpus:
            values["gpus"] = list(range(self.gpus))
        path = records.run_path(self.cfg)
        files = {records.RECORD: (path / records.RECORD).read_text()} if self.timed and not shared else {}
        return {
            "name": self.cfg.name,
            "config": yaml.safe_dump(values, sort_keys=False),
            "options": [] if self.timed else ["--untimed"],
            "fingerprint": self.cfg.fingerprint(),
            "source": source.fingerprint(),
            "folder": os.getcwd() if shared else None,
            "run": str(path),
            "dense": str(records.dense_path(self.cfg)),
            "gpus": self.gpus if placed else 0,
            "files": files,
        }


class Began(NamedTuple):
    """A task has begun, again perhaps, on a machine."""

    task: Task
    where: str = ""


class Ended(NamedTuple):
    """A task has ended: its exit code, and where that is not 0 its last words."""

    task: Task
    code: int
    said: Sequence[str] = ()


class Engine:
    """Computes tasks. Leaving its block ends what must not outlive this process."""

    at_once: float = 1  # tasks that may be handed over at a time
    kept_back: int = 0  # tasks of this round that are still to be handed over

    def __init__(self, address: str, setup: Setup) -> None:
        raise NotImplementedError

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: Any) -> None:
        pass

    def check(self, tasks: Sequence[Task]) -> None:
        """UserError: it cannot compute one of these."""

    def alone(self) -> None:
        """From now on one task at a time, all on one machine: their speeds will be compared."""
        self.at_once = 1

    def submit(self, task: Task) -> None:
        """Hand over a task; one that is there already is watched instead."""
        raise NotImplementedError

    def poll(self) -> List[Union[Began, Ended]]:
        """What has happened since the last time."""
        raise NotImplementedError

    def left(self) -> Optional[str]:
        """What goes on without this process, in one line; None: nothing does."""
        return None

    def _left(self, n_running: int, n_waiting: int, what: str, where: str) -> str:
        back = f" ({self.kept_back} more had not been handed over)" if self.kept_back else ""
        return (
            f"stopped watching: {n_running} {what} go on and {n_waiting} wait {where}{back}; the same command watches "
            "them again, and with --cancel it ends them"
        )

    def cancel(self, tasks: Sequence[Task]) -> str:
        """End those of the tasks that an earlier process handed over; what was done, in words."""
        raise NotImplementedError


ENGINES: Registry = Registry("engine for --on")


def engine(address: str, setup: Setup) -> Engine:
    """The engine of an address: `local`, `dask://HOST:PORT`, `slurm`. UserError: none, or it does not answer."""
    word, _, place = address.partition("://")
    return ENGINES[word](place, setup)


def _refuse(address: str, place: str, wanted: str) -> None:
    if place:
        raise UserError(f"--on {address}://{place}: takes no address; give --on {wanted}", key="sweep.address")


def _installed(module: str, extra: str) -> ModuleType:
    """A package that only an engine needs. UserError: it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(
            f"--on {extra}: needs the package {module} ({error}); "
            f"run `pip install -c constraints.txt '.[{extra}]'`, or install {module} alone",
            key="sweep.extra",
        ) from None


# ---- on this machine -------------------------------------------------------------------------------------------------


@ENGINES.register("local")
class Local(Engine):
    """Processes of this machine, several at a time, which end with this one."""

    def __init__(self, address: str, setup: Setup) -> None:
        _refuse("local", address, "local")
        if setup.collect:
            raise UserError(
                "--collect: fetches runs from other machines; give it with --on dask://...", "sweep.collect"
            )
        self.script, self.at_once = setup.script, setup.jobs or 1
        self._running: Dict[int, Tuple[Task, subprocess.Popen]] = {}
        self._began: List[Began] = []

    def __exit__(self, *_: Any) -> None:
        guard.end([process for _, process in self._running.values()])

    def submit(self, task: Task) -> None:
        """Start it in a process of its own: its threads are its config's, and its memory is given back."""
        slot = next(n for n in range(len(self._running) + 1) if n not in self._running)
        words = [word for text in task.overrides for word in ("--set", text)]
        words += [word for overlay in task.overlays for word in ("--overlay", str(overlay))]
        words += [] if task.timed else ["--untimed"]
        command = guard.guarded([sys.executable, str(self.script), str(task.path), *words])
        environment = {**os.environ, "TQDM_POSITION": str(slot)}
        self._running[slot] = task, guard.start(command, stdout=subprocess.DEVNULL, env=environment)
        self._began.append(Began(task))

    def poll(self) -> List[Union[Began, Ended]]:
        """See `Engine`."""
        began, self._began = self._began, []
        over = [slot for slot, (_, process) in self._running.items() if process.poll() is not None]
        popped = [self._running.pop(slot) for slot in over]
        return [*began, *(Ended(task, process.returncode) for task, process in popped)]

    def cancel(self, tasks: Sequence[Task]) -> str:
        """See `Engine`."""
        raise UserError(
            "--cancel: nothing outlives a local sweep; give it with --on dask://... or slurm", "sweep.cancel"
        )


# ---- on a worker -----------------------------------------------------------------------------------------------------


def execute(job: Dict[str, Any], where: str, scratch: str, dropped: Callable[[], bool] = lambda: False) -> dict:
    """Run a task's job on this machine: exit code, where, last lines, and the run's files if its folder is not shared.

    `scratch` is for what is not shared. When `dropped` says that nobody wants the run any more, it is ended.
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
    """A finished run's files, without locks, checkpoints, and what is rewritten where it arrives."""
    paths = [path for path in sorted(folder.glob("*")) if path.is_file() and _is_brought(path.name)]
    return {path.name: path.read_bytes() for path in paths}


def _is_brought(name: str) -> bool:
    """Whether a name is that of one of a run's files which go to another machine."""
    left = name in ("lock", "config.yaml") or name.endswith((".lock", ".states", ".checkpoint"))
    return bool(re.fullmatch(r"\w[\w.+-]{0,200}", name, re.ASCII)) and not left


def _wait_for_lock(run: Path, dropped: Callable[[], bool]) -> None:
    """Wait for another process of this run, which ends as its worker has died; its lock may outlive it for a while.

    After `LOCK_S` the run itself says whose folder it is.
    """
    lock, until = filelock.FileLock(str(run / "lock")), time.monotonic() + LOCK_S
    while (run / "lock").exists() and time.monotonic() < until and not dropped():
        with contextlib.suppress(filelock.Timeout), lock.acquire(timeout=1):
            return


_TAKEN: set = set()  # GPUs that runs of this worker have
_TAKING = threading.Lock()


@contextlib.contextmanager
def _gpus(n: int) -> Iterator[Dict[str, str]]:
    """The environment in which a run sees `n` GPUs of this worker that no other of its runs has.

    The scheduler counts them, so that there are as many; which they are is decided here.
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
    """Write a run that came from another machine as if it had been made here, its record last.

    UserError: what came is no record of this run, or the folder cannot be written.
    """
    path, dense = records.run_path(task.cfg), records.dense_path(task.cfg)
    run = {name: content for name, content in files["run"].items() if _is_brought(name)}
    with locked(path, wait=False):
        about = f"the record of {task.name} from a worker"
        record = parse_json(run.pop(records.RECORD), records.Record, about, "run the sweep again")
        if record.fingerprint != task.cfg.fingerprint():
            raise UserError(f"{about} is that of another run; run the sweep again", key="sweep.record")
        for name, content in run.items():
            _write(path / name, content)
        if not (path / records.RECORD).exists():
            write_text(path / "config.yaml", yaml.safe_dump(task.cfg.model_dump(mode="json"), sort_keys=False))
            config = {**record.config, "output": task.cfg.output}
            write_json(path / records.RECORD, {**record.model_dump(mode="json"), "config": config})
    with locked(dense):  # one for several runs, each of which may have trained it on another worker
        for name, content in files["dense"].items():
            if _is_brought(name) and not (dense / name).exists():
                _write(dense / name, content)


def _write(path: Path, content: bytes) -> None:
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def _within(seconds: float, function: Callable[[], Any]) -> Any:
    """What a function returns or raises. TimeoutError: it takes longer, and is left to itself."""
    future: concurrent.futures.Future = concurrent.futures.Future()

    def work() -> None:
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=work, daemon=True).start()  # a pool's threads would be waited for when the process ends
    try:
        return future.result(seconds)
    except concurrent.futures.TimeoutError:
        raise TimeoutError(f"no answer in {seconds:g} s") from None


# ---- dask ------------------------------------------------------------------------------------------------------------


def about_worker(dask_worker: Any) -> Dict[str, Any]:
    """What a sweep has to know of a worker; runs on it, as do all functions of this section that take `dask_worker`."""
    return {
        "name": str(dask_worker.name),
        "version": gcp.__version__,
        "source": source.fingerprint(),
        "cores": os.cpu_count() or 1,
        "resources": dict(dask_worker.state.total_resources),
        "executing": [str(task.key) for task in dask_worker.state.executing],
    }


async def declare_place(dask_worker: Any) -> None:
    """Let the worker have one run at a time, where it was not told how many cores its runs may have."""
    await dask_worker.set_resources(run=1)


def sees(paths: Sequence[str]) -> List[str]:
    """Which of the paths are not there on this machine."""
    return [path for path in paths if not os.path.exists(path)]


def execute_on_worker(job: Dict[str, Any]) -> dict:
    """A task of dask: `execute` on one of its workers, until the worker closes or the task is cancelled."""
    import distributed

    worker = distributed.get_worker()
    key = worker.get_current_task()

    def dropped() -> bool:
        task = worker.state.tasks.get(key)
        return task is None or task.state == "cancelled" or worker.status.name not in ("running", "paused")

    return execute(job, str(worker.name), os.path.join(worker.local_directory, "gcp-sweep"), dropped)


@ENGINES.register("dask")
class Dask(Engine):
    """A cluster of dask.distributed: all tasks are handed over at once, and go on without this process.

    They stay published under their keys until a sweep has taken their results, so that a later sweep finds them. A task
    returns its exit code instead of raising, so that dask repeats it when its worker has died, and never otherwise.
    """

    at_once = float("inf")

    def __init__(self, address: str, setup: Setup) -> None:
        distributed = _installed("distributed", "dask")
        if setup.jobs is not None:
            raise UserError("--jobs: is for --on local; dask's workers say how much each takes", key="sweep.jobs")
        self.shared, self.address = not setup.collect, f"dask://{address}"
        self._watched: Dict[str, Tuple[Task, Any]] = {}
        self._seen: Dict[str, str] = {}  # the worker that each task was last seen on
        self._states: Dict[str, dict] = {}  # of the workers, by address
        self._asked = 0.0
        self._only: Optional[str] = None  # the worker that measures speeds
        self.client = self._connected(distributed, address)

    def _connected(self, distributed: ModuleType, address: str) -> Any:
        match = re.fullmatch(r"(\[[0-9a-fA-F:]+\]|[\w.-]+)(?::(\d{1,5}))?/?", address, re.ASCII)
        if not match or int(match[2] or 1) > 65535:
            raise UserError(
                f"--on {self.address}: should be dask://HOST:PORT, as dask's scheduler says", "sweep.address"
            )
        host, port = match[1], int(match[2] or 8786)
        # dask says much while it tries again and again; what has to be said is said here.
        logging.getLogger("distributed").setLevel(logging.CRITICAL)
        security = distributed.Security()
        scheme = "tls" if security.tls_ca_file or security.require_encryption else "tcp"
        try:
            socket.create_connection((host.strip("[]"), port), CONNECT_S).close()
            how = {"timeout": CONNECT_S, "security": security, "set_as_default": False}
            return _within(1.5 * CONNECT_S, lambda: distributed.Client(f"{scheme}://{host}:{port}", **how))
        except Exception as error:  # whatever answers there may say anything
            raise UserError(
                f"--on {self.address}: no scheduler of dask answers there over {scheme} "
                f"({type(error).__name__}: {str(error)[:200]}); start one by `dask scheduler`, or correct the address",
                key="sweep.connect",
            ) from None

    def __exit__(self, *_: Any) -> None:
        with contextlib.suppress(Exception):
            self.client.close(timeout=CONNECT_S)

    def check(self, tasks: Sequence[Task]) -> None:
        """See `Engine`. Also says where dask's dashboard is."""
        print(f"dask's dashboard: {self.client.dashboard_link}", file=sys.stderr, flush=True)
        try:
            there = self.client.run_on_scheduler(source.fingerprint)
        except Exception as error:
            there = f"none that can be used: {type(error).__name__}: {error}"
        self._same("the scheduler", there)
        found = self.client.run(about_worker, on_error="return")
        if not found:
            raise UserError(f"--on {self.address}: has no workers; start some by `dask worker`", key="sweep.workers")
        for address, state in sorted(found.items()):
            broken = isinstance(state, BaseException)
            name = address if broken else f"the worker {state['name']} ({address})"
            self._same(name, f"none that can be used: {state}" if broken else state["source"])
        self._states = found
        self._check_place(tasks)
        self._check_folder(tasks)

    def _same(self, name: str, there: str) -> None:
        here = source.fingerprint()
        if there != here:
            raise UserError(
                f"--on {self.address}: {name} has another package gcp ({there[:200]}) than this machine "
                f"({gcp.__version__}, source {here}); install the same there, and start it again",
                key="sweep.version",
            )

    @property
    def _counted(self) -> bool:
        """Whether the workers were told how many cores their runs may have."""
        return any("cores" in state["resources"] for state in self._states.values())

    def _check_place(self, tasks: Sequence[Task]) -> None:
        def fits(task: Task, state: dict) -> bool:
            if not self._counted:
                return task.cores <= state["cores"]
            has = state["resources"]
            return task.cores <= has.get("cores", 0) and task.gpus <= has.get("gpu", 0)

        for task in tasks:
            if self._counted:
                _check_threads(task, f"--on {self.address}")
            if not any(fits(task, state) for state in self._states.values()):
                gpus = f" and {task.gpus} GPUs" if task.gpus else ""
                raise UserError(
                    f"--on {self.address}: {task.name} takes {task.cores} cores{gpus}, more than any worker has; set "
                    "threads and gpus to less, or start a worker with such --resources",
                    key="sweep.place",
                )
        if not self._counted:
            self.client.run(declare_place)

    def _check_folder(self, tasks: Sequence[Task]) -> None:
        """UserError: the folder should be shared and is not, or the other way round a run needs what only it has."""
        if not self.shared:
            for task in tasks:
                if task.cfg.model.is_pattern:
                    raise UserError(
                        f"--collect: {task.name} starts from the final network of another run ({task.cfg.model.name}), "
                        "which the workers would have to read; share the folder, and leave --collect out",
                        key="sweep.collect",
                    )
            return
        with contextlib.ExitStack() as marks:
            folders = sorted({os.path.abspath(task.cfg.output) for task in tasks})
            for folder in folders:
                os.makedirs(folder, exist_ok=True)
            paths = [marks.enter_context(tempfile.NamedTemporaryFile(prefix=".sweep-", dir=f)).name for f in folders]
            for address, missing in sorted(self.client.run(sees, [os.getcwd(), *paths]).items()):
                if missing:
                    raise UserError(
                        f"--on {self.address}: the worker {self._states[address]['name']} ({address}) does not see "
                        f"what is in {os.path.dirname(missing[0])} here; share the folder under the same path, or give "
                        "--collect",
                        key="sweep.folder",
                    )

    def alone(self) -> None:
        """One task at a time on one worker: the one of the name `measure`, else the first by name."""
        self.at_once = 1
        named = sorted((state["name"] != "measure", state["name"], address) for address, state in self._ask().items())
        if not named:
            raise UserError(f"--on {self.address}: no workers are left to measure speeds", key="sweep.workers")
        self._only = named[0][2]
        print(f"speeds are measured on the worker {named[0][1]}", file=sys.stderr, flush=True)

    def submit(self, task: Task) -> None:
        """See `Engine`: a key that the scheduler has is what it is already doing, or has done."""
        resources = {"cores": task.cores, "gpu": task.gpus} if self._counted else {"run": 1}
        place = {}
        if self._only:  # nothing else of the same kind beside it
            place = {"workers": [self._only], "allow_other_workers": False}
            resources = self._states.get(self._only, {}).get("resources") or resources
        future = self.client.submit(
            execute_on_worker,
            task.job(placed=self._counted, shared=self.shared),
            key=task.key,
            resources={name: n for name, n in resources.items() if n},
            priority=-len(self._watched),
            retries=0,
            **place,
        )
        self.client.publish_dataset(future, name=task.key, override=True)
        self._watched[task.key] = task, future

    def poll(self) -> List[Union[Began, Ended]]:
        """See `Engine`. Workers that have joined are told how many runs they may have."""
        events: List[Union[Began, Ended]] = []
        if time.monotonic() > self._asked + POLL_S:
            for state in self._ask().values():
                for key in state["executing"]:
                    if key in self._watched and self._seen.get(key) != state["name"]:
                        self._seen[key] = state["name"]
                        events.append(Began(self._watched[key][0], state["name"]))
            if not self._counted and any("run" not in state["resources"] for state in self._states.values()):
                self.client.run(declare_place, on_error="ignore")
        over = [key for key, (_, future) in self._watched.items() if future.done()]
        return [*events, *(event for key in over for event in self._ended(key)), *self._lost()]

    def _ask(self) -> Dict[str, dict]:
        """The states of all workers that answer."""
        found = self.client.run(about_worker, on_error="return")
        self._states = {key: state for key, state in found.items() if isinstance(state, dict)}
        self._asked = time.monotonic()
        return self._states

    def _ended(self, key: str) -> List[Union[Began, Ended]]:
        task, future = self._watched.pop(key)
        try:
            result = future.result()
        except Exception as error:  # dask's own: its worker died too often, it was cancelled, the scheduler is gone
            result = {"code": 1, "said": [f"not done: {type(error).__name__}: {error}"]}
        with contextlib.suppress(Exception):  # the scheduler may be gone
            self.client.unpublish_dataset(task.key)
        if result["code"] == 0 and not self.shared:
            receive(task, result["files"])
        ended = Ended(task, result["code"], result["said"])
        return [ended] if key in self._seen else [Began(task, result.get("where", "")), ended]  # too short to be seen

    def _lost(self) -> List[Ended]:
        """Tasks for the one worker that measures, where that has gone: no other may take its place."""
        if self._only is None or self._only in self._states:
            return []
        lost, self._watched = self._watched, {}
        for key in lost:
            self._drop([key])
        said = ["the worker that measures speeds has gone; run the same command again to measure them on another"]
        return [Ended(task, 1, said) for task, _ in lost.values()]

    def left(self) -> Optional[str]:
        """See `Engine`."""
        executing = {key for state in self._ask().values() for key in state["executing"]}
        n = sum(key in executing for key in self._watched)
        return self._left(n, len(self._watched) - n, "tasks", f"at {self.address}")

    def cancel(self, tasks: Sequence[Task]) -> str:
        """See `Engine`."""
        there = set(self.client.list_datasets())
        keys = [task.key for task in tasks if task.key in there]
        self._drop(keys)
        return f"{len(keys)} tasks cancelled at {self.address}; finished runs, and checkpoints of others, are kept"

    def _drop(self, keys: Sequence[str]) -> None:
        for key in keys:
            future = self.client.get_dataset(key)
            self.client.cancel([future], force=True)
            self.client.unpublish_dataset(key)


def _check_threads(task: Task, place: str) -> None:
    if not task.cfg.threads:
        raise UserError(
            f"{place}: {task.name} has threads: 0, all cores of whatever machine, which cannot be placed; "
            "give --set threads=N",
            key="sweep.threads",
        )


# ---- SLURM -----------------------------------------------------------------------------------------------------------


class Requeued:
    """A task of SLURM: `execute` on a node; when its time is over, or the node is taken away, it is queued again."""

    def __call__(self, job: Dict[str, Any]) -> dict:
        return execute(job, socket.gethostname(), "")

    def checkpoint(self, job: Dict[str, Any]) -> Any:
        """What submitit queues again; the run resumes from its own checkpoint."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, job)


@ENGINES.register("slurm")
class Slurm(Engine):
    """Jobs of SLURM by submitit: all are queued at once, and go on without this process.

    Which jobs there are is kept in the folder `slurm` of the results, which the nodes share, with what submitit writes.
    """

    at_once = float("inf")
    CLUSTER: ClassVar[str] = "slurm"  # submitit's other ones stand in for it in tests

    def __init__(self, address: str, setup: Setup) -> None:
        _refuse("slurm", address, "slurm")
        self.submitit = _installed("submitit", "slurm")
        for given, option in ((setup.jobs, "--jobs"), (setup.collect, "--collect")):
            if given:
                why = "SLURM says how many jobs run at a time" if option == "--jobs" else "jobs need a shared folder"
                raise UserError(f"{option}: cannot go with --on slurm: {why}; leave it out", key="sweep.option")
        if self.CLUSTER == "slurm" and shutil.which("sbatch") is None:
            raise UserError(
                "--on slurm: there is no `sbatch` on PATH; run this where jobs are submitted, or load SLURM's module",
                key="sweep.sbatch",
            )
        self._watched: Dict[str, Tuple[Task, Any]] = {}
        self._tries: Dict[str, int] = {}
        self._running: set = set()
        self._alone, self._node = False, None

    def check(self, tasks: Sequence[Task]) -> None:
        """See `Engine`."""
        for task in tasks:
            _check_threads(task, "--on slurm")

    def alone(self) -> None:
        """One job at a time, with a node of its own: the node of the first."""
        self.at_once, self._alone = 1, True

    def submit(self, task: Task) -> None:
        """See `Engine`."""
        with locked(_jobs(task), f"{task.key}.lock"):
            job = self._queued(task)
            if job is None:
                executor = self.submitit.AutoExecutor(folder=_jobs(task), cluster=self.CLUSTER)
                # What a partition or account needs beside this, sbatch takes from the environment (SBATCH_PARTITION).
                executor.update_parameters(name=task.key, timeout_min=SLURM_MINUTES, nodes=1, tasks_per_node=1)
                executor.update_parameters(cpus_per_task=task.cores)
                if task.gpus:
                    executor.update_parameters(gpus_per_node=task.gpus)
                if self._alone:
                    node = {"nodelist": self._node} if self._node else {}
                    executor.update_parameters(slurm_exclusive=True, slurm_additional_parameters=node)
                # SLURM shows a job only the GPUs that it has given to it.
                job = executor.submit(Requeued(), task.job(placed=True, shared=True) | {"gpus": 0})
                write_json(_jobs(task) / f"{task.key}.json", {"job": job.job_id})
        self._watched[task.key] = task, job

    def _queued(self, task: Task) -> Any:
        """The job that an earlier sweep has queued for the task; None where there is none."""
        path = _jobs(task) / f"{task.key}.json"
        if not path.exists():
            return None
        number = read_json(path, Dict[str, str], "remove it if no such job is queued")["job"]
        executor = self.submitit.AutoExecutor(folder=_jobs(task), cluster=self.CLUSTER)
        return executor._executor.job_class(folder=_jobs(task), job_id=number, tasks=[0])

    def poll(self) -> List[Union[Began, Ended]]:
        """See `Engine`."""
        events: List[Union[Began, Ended]] = []
        for key, (task, job) in list(self._watched.items()):
            if job.done():
                del self._watched[key]
                events += self._ended(task, job)
            elif key not in self._running and job.state == "RUNNING":
                self._running.add(key)
                events.append(Began(task, f"job {job.job_id}"))
        return events

    def _ended(self, task: Task, job: Any) -> List[Ended]:
        """How a job ended; nothing where it is queued again, since its node has died."""
        (_jobs(task) / f"{task.key}.json").unlink(missing_ok=True)
        try:
            result = job.result()
        except self.submitit.core.utils.UncompletedJobError:  # killed, with its node or by hand
            self._tries[task.key] = self._tries.get(task.key, 1) + 1
            if self._tries[task.key] <= SLURM_TRIES and not job.state.startswith("CANCELLED"):
                self._running.discard(task.key)
                self.submit(task)
                return []
            result = {"code": 1, "said": [f"job {job.job_id} ended without a result: {job.state}; see {_jobs(task)}"]}
        except self.submitit.core.utils.FailedJobError as error:
            result = {"code": 1, "said": [f"job {job.job_id} failed; see {_jobs(task)}", *str(error).splitlines()[-1:]]}
        self._node = result.get("where", self._node) if self._alone else None
        return [Ended(task, result["code"], result["said"])]

    def left(self) -> Optional[str]:
        """See `Engine`."""
        n = len(self._running & self._watched.keys())
        return self._left(n, len(self._watched) - n, "jobs", "in SLURM's queue")

    def cancel(self, tasks: Sequence[Task]) -> str:
        """See `Engine`."""
        queued = [(task, job) for task in tasks for job in [self._queued(task)] if job is not None]
        for task, job in queued:
            job.cancel(check=False)
            (_jobs(task) / f"{task.key}.json").unlink(missing_ok=True)
        return f"{len(queued)} jobs cancelled; finished runs, and checkpoints of others, are kept"


def _jobs(task: Task) -> Path:
    """Where jobs of SLURM are kept."""
    return Path(os.path.abspath(task.cfg.output)) / "slurm"

"""The engine that computes the runs of a sweep on the workers of a dask.distributed scheduler."""

from __future__ import annotations

import concurrent.futures
import contextlib
import logging
import os
import re
import socket
import sys
import tempfile
import threading
import time
from types import ModuleType
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple, Union

import gcp
from gcp.errors import UserError
from gcp.experiment import source
from gcp.experiment.sweep.base import ENGINES, Began, Ended, Engine, Setup, Task, check_threads, installed
from gcp.experiment.sweep.worker import execute, receive

CONNECT_S = 10.0  # a busy machine takes some seconds to answer
POLL_S = 4.0  # between two queries of all workers


def _within(seconds: float, function: Callable[[], Any]) -> Any:
    """Call a function, and return or raise what it does. TimeoutError: it takes longer; it is left running."""
    future: concurrent.futures.Future = concurrent.futures.Future()

    def work() -> None:
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=work, daemon=True).start()  # a pool's threads would be joined when the process exits
    try:
        return future.result(seconds)
    except concurrent.futures.TimeoutError:
        raise TimeoutError(f"no answer in {seconds:g} s") from None


def about_worker(dask_worker: Any) -> Dict[str, Any]:
    """What a sweep has to know about a worker; runs on the worker, like all functions here that take `dask_worker`."""
    return {
        "name": str(dask_worker.name),
        "version": gcp.__version__,
        "source": source.fingerprint(),
        "cores": os.cpu_count() or 1,
        "resources": dict(dask_worker.state.total_resources),
        "executing": [str(task.key) for task in dask_worker.state.executing],
    }


async def declare_place(dask_worker: Any) -> None:
    """Limit the worker to one run at a time; for workers that were not started with a number of cores."""
    await dask_worker.set_resources(run=1)


def sees(paths: Sequence[str]) -> List[str]:
    """The paths that do not exist on this machine."""
    return [path for path in paths if not os.path.exists(path)]


def execute_on_worker(job: Dict[str, Any]) -> dict:
    """The function of a dask task: `execute` on a worker, ended when the worker closes or the task is cancelled."""
    import distributed

    worker = distributed.get_worker()
    key = worker.get_current_task()

    def dropped() -> bool:
        task = worker.state.tasks.get(key)
        return task is None or task.state == "cancelled" or worker.status.name not in ("running", "paused")

    return execute(job, str(worker.name), os.path.join(worker.local_directory, "gcp-sweep"), dropped)


@ENGINES.register("dask")
class Dask(Engine):
    """A dask.distributed cluster: all tasks are submitted at once, and continue without this process.

    They stay published under their keys until a sweep has collected their results, so that a later sweep finds them. A
    task returns its exit code instead of raising, so that dask repeats it only if its worker has died.
    """

    at_once = float("inf")

    def __init__(self, address: str, setup: Setup) -> None:
        distributed = installed("distributed", "dask")
        if setup.jobs is not None:
            raise UserError(
                "--jobs: is only for --on local; dask's workers declare how much each takes", key="sweep.jobs"
            )
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
                f"--on {self.address}: should be dask://HOST:PORT, as shown by dask's scheduler", "sweep.address"
            )
        host, port = match[1], int(match[2] or 8786)
        # dask logs a lot while it retries; what the user has to know is reported here.
        logging.getLogger("distributed").setLevel(logging.CRITICAL)
        security = distributed.Security()
        scheme = "tls" if security.tls_ca_file or security.require_encryption else "tcp"
        try:
            socket.create_connection((host.strip("[]"), port), CONNECT_S).close()
            how = {"timeout": CONNECT_S, "security": security, "set_as_default": False}
            return _within(1.5 * CONNECT_S, lambda: distributed.Client(f"{scheme}://{host}:{port}", **how))
        except Exception as error:  # whatever listens there may answer anything
            raise UserError(
                f"--on {self.address}: no dask scheduler answers there over {scheme} "
                f"({type(error).__name__}: {str(error)[:200]}); start one with `dask scheduler`, or fix the address",
                key="sweep.connect",
            ) from None

    def __exit__(self, *_: Any) -> None:
        with contextlib.suppress(Exception):
            self.client.close(timeout=CONNECT_S)

    def check(self, tasks: Sequence[Task]) -> None:
        """See `Engine`. Also prints the address of dask's dashboard."""
        print(f"dask's dashboard: {self.client.dashboard_link}", file=sys.stderr, flush=True)
        try:
            there = self.client.run_on_scheduler(source.fingerprint)
        except Exception as error:
            there = f"none that can be used: {type(error).__name__}: {error}"
        self._same("the scheduler", there)
        found = self.client.run(about_worker, on_error="return")
        if not found:
            raise UserError(f"--on {self.address}: has no workers; start some with `dask worker`", key="sweep.workers")
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
                f"--on {self.address}: {name} has a different gcp package ({there[:200]}) than this machine "
                f"({gcp.__version__}, source {here}); install the same one there, and restart it",
                key="sweep.version",
            )

    @property
    def _counted(self) -> bool:
        """Whether any worker was started with a number of cores, so that cores are counted."""
        return any("cores" in state["resources"] for state in self._states.values())

    def _check_place(self, tasks: Sequence[Task]) -> None:
        def fits(task: Task, state: dict) -> bool:
            if not self._counted:
                return task.cores <= state["cores"]
            has = state["resources"]
            return task.cores <= has.get("cores", 0) and task.gpus <= has.get("gpu", 0)

        for task in tasks:
            if self._counted:
                check_threads(task, f"--on {self.address}")
            if not any(fits(task, state) for state in self._states.values()):
                gpus = f" and {task.gpus} GPUs" if task.gpus else ""
                raise UserError(
                    f"--on {self.address}: {task.name} takes {task.cores} cores{gpus}, more than any worker has; lower "
                    "threads and gpus, or start a worker with enough --resources",
                    key="sweep.place",
                )
        if not self._counted:
            self.client.run(declare_place)

    def _check_folder(self, tasks: Sequence[Task]) -> None:
        """Raise UserError if the folder should be shared but is not, or if a run needs a shared folder and has none."""
        if not self.shared:
            for task in tasks:
                if task.cfg.model.is_pattern:
                    raise UserError(
                        f"--collect: {task.name} starts from the final network of another run ({task.cfg.model.name}), "
                        "which the workers would have to read; share the folder, and leave out --collect",
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
        """One task at a time on one worker: the one named `measure`, else the first by name."""
        self.at_once = 1
        named = sorted((state["name"] != "measure", state["name"], address) for address, state in self._ask().items())
        if not named:
            raise UserError(f"--on {self.address}: no workers are left to measure speeds", key="sweep.workers")
        self._only = named[0][2]
        print(f"speeds are measured on the worker {named[0][1]}", file=sys.stderr, flush=True)

    def submit(self, task: Task) -> None:
        """See `Engine`. A key that the scheduler already has refers to a task that is waiting, running or done."""
        resources = {"cores": task.cores, "gpu": task.gpus} if self._counted else {"run": 1}
        place = {}
        if self._only:  # all resources of that worker, so that no other task runs beside it
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
        """See `Engine`. Workers that have joined in the meantime are limited to one run, unless cores are counted."""
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
        except Exception as error:  # dask's own: workers died too often, it was cancelled, the scheduler is gone
            result = {"code": 1, "said": [f"not done: {type(error).__name__}: {error}"]}
        with contextlib.suppress(Exception):  # the scheduler may be gone
            self.client.unpublish_dataset(task.key)
        if result["code"] == 0 and not self.shared:
            receive(task, result["files"])
        ended = Ended(task, result["code"], result["said"])
        return [ended] if key in self._seen else [Began(task, result.get("where", "")), ended]  # too short to be seen

    def _lost(self) -> List[Ended]:
        """Drop all tasks if the worker that measures speeds is gone, since no other may take its place."""
        if self._only is None or self._only in self._states:
            return []
        lost, self._watched = self._watched, {}
        for key in lost:
            self._drop([key])
        said = ["the worker that measures speeds is gone; run the same command again to measure them on another"]
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

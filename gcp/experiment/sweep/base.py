"""The interface of a sweep's engines: the tasks that they take, the events that they report, and their registry."""

from __future__ import annotations

import hashlib
import importlib
import os
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple, Union

from gcp.errors import UserError
from gcp.experiment import record as records
from gcp.experiment import source
from gcp.experiment.config import Config
from gcp.registry import Registry
from gcp.storage import yaml_text


class Setup(NamedTuple):
    """From the command line: the script that runs an experiment here, how many run at once, whether to fetch runs."""

    script: Path
    jobs: Optional[int] = None
    collect: bool = False


@dataclass(frozen=True)
class Task:
    """One experiment to be run, or to be timed: where its configuration comes from, and the configuration."""

    path: Path
    overrides: Tuple[str, ...]
    overlays: Tuple[str, ...]
    cfg: Config
    timed: bool = False

    @property
    def what(self) -> str:
        """What is done with the experiment: `run` or `measure`."""
        return "measure" if self.timed else "run"

    @property
    def name(self) -> str:
        """The experiment's name in messages."""
        return f"{self.cfg.name} seed {self.cfg.seed}"

    @property
    def key(self) -> str:
        """A key that is equal for the same work in the same folder, so that nothing is computed twice."""
        cfg, place = self.cfg, hashlib.sha256(os.path.abspath(self.cfg.output).encode()).hexdigest()[:8]
        # The network that it starts from does not exist yet, so its content cannot be part of the key.
        path = f"{cfg.name}-seed{cfg.seed}-late" if cfg.model.is_pattern else records.run_path(cfg).name
        return f"gcp-{self.what}-{path}-{place}"

    @property
    def gpus(self) -> int:
        """The number of GPUs that the task takes."""
        return len(self.cfg.gpus)

    @property
    def cores(self) -> int:
        """The number of CPU cores that the task takes; 0: all of a machine's."""
        return self.cfg.threads * max(1, self.gpus)

    def job(self, placed: bool, shared: bool) -> Dict[str, Any]:
        """The task as plain data. `placed`: the worker assigns GPUs to it, so that it does not choose their numbers.

        If the folder is not `shared`, a run to be timed brings its record along.
        """
        values = self.cfg.model_dump(mode="json", exclude_unset=True)
        if placed and self.gpus:
            values["gpus"] = list(range(self.gpus))
        path = records.run_path(self.cfg)
        files = {records.RECORD: (path / records.RECORD).read_text()} if self.timed and not shared else {}
        return {
            "name": self.cfg.name,
            "config": yaml_text(values),
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
    """A task has begun on a machine, possibly not for the first time."""

    task: Task
    where: str = ""


class Ended(NamedTuple):
    """A task has ended, with its exit code and, if that is not 0, its last lines of output."""

    task: Task
    code: int
    said: Sequence[str] = ()


class Engine:
    """Computes tasks. Leaving its `with` block ends whatever must not outlive this process."""

    at_once: float = 1  # tasks that may be submitted at a time
    kept_back: int = 0  # tasks of this round that have not been submitted yet

    def __init__(self, address: str, setup: Setup) -> None:
        raise NotImplementedError

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: Any) -> None:
        pass

    def check(self, tasks: Sequence[Task]) -> None:
        """Raise UserError if the engine cannot compute one of the tasks."""

    def alone(self) -> None:
        """From now on, compute one task at a time, all on one machine, since their speeds will be compared."""
        self.at_once = 1

    def submit(self, task: Task) -> None:
        """Submit a task; one that has already been submitted is watched instead."""
        raise NotImplementedError

    def poll(self) -> List[Union[Began, Ended]]:
        """The events since the last call."""
        raise NotImplementedError

    def left(self) -> Optional[str]:
        """One line about the tasks that continue without this process; None if there are none."""
        return None

    def _left(self, n_running: int, n_waiting: int, what: str, where: str) -> str:
        back = f" ({self.kept_back} more had not been submitted)" if self.kept_back else ""
        return (
            f"stopped watching: {n_running} {what} continue and {n_waiting} wait {where}{back}; the same command "
            "watches them again, and with --cancel it ends them"
        )

    def cancel(self, tasks: Sequence[Task]) -> str:
        """End those of the tasks that an earlier process submitted; returns what was done, in words."""
        raise NotImplementedError


ENGINES: Registry = Registry("engine for --on")


def engine(address: str, setup: Setup) -> Engine:
    """The engine for an address: `local`, `dask://HOST:PORT` or `slurm`. UserError: unknown, or it does not answer."""
    word, _, place = address.partition("://")
    return ENGINES[word](place, setup)


def refuse(address: str, place: str, wanted: str) -> None:
    """Raise UserError if a `place` was given to an engine that takes none."""
    if place:
        raise UserError(f"--on {address}://{place}: takes no address; give --on {wanted}", key="sweep.address")


def installed(module: str, extra: str) -> ModuleType:
    """Import a package that only one engine needs. UserError: it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(
            f"--on {extra}: needs the package {module} ({error}); "
            f"run `pip install -c constraints.txt '.[{extra}]'`, or install {module} alone",
            key="sweep.extra",
        ) from None


def check_threads(task: Task, place: str) -> None:
    """Raise UserError if a task takes all cores of a machine, for engines that count cores."""
    if not task.cfg.threads:
        raise UserError(
            f"{place}: {task.name} has threads: 0, all cores of any machine, which cannot be placed; "
            "give --set threads=N",
            key="sweep.threads",
        )

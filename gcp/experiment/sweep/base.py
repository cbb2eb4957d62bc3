"""What every engine of a sweep is: the tasks that it takes, the events that it tells of, and the registry."""

from __future__ import annotations

import hashlib
import importlib
import os
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple, Union

import yaml

from gcp.errors import UserError
from gcp.experiment import record as records
from gcp.experiment import source
from gcp.experiment.config import Config
from gcp.registry import Registry


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


def refuse(address: str, place: str, wanted: str) -> None:
    """UserError: a place was given to an engine that has none."""
    if place:
        raise UserError(f"--on {address}://{place}: takes no address; give --on {wanted}", key="sweep.address")


def installed(module: str, extra: str) -> ModuleType:
    """A package that only an engine needs. UserError: it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(
            f"--on {extra}: needs the package {module} ({error}); "
            f"run `pip install -c constraints.txt '.[{extra}]'`, or install {module} alone",
            key="sweep.extra",
        ) from None


def check_threads(task: Task, place: str) -> None:
    """UserError: a task that takes all cores of a machine, where cores are counted."""
    if not task.cfg.threads:
        raise UserError(
            f"{place}: {task.name} has threads: 0, all cores of whatever machine, which cannot be placed; "
            "give --set threads=N",
            key="sweep.threads",
        )

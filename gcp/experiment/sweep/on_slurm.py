"""The engine that computes the runs of a sweep as SLURM jobs, through submitit."""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path
from typing import Any, ClassVar, Dict, List, Optional, Sequence, Tuple, Union

from gcp.errors import UserError
from gcp.experiment.sweep.base import ENGINES, Began, Ended, Engine, Setup, Task, check_threads, installed, refuse
from gcp.experiment.sweep.worker import execute
from gcp.storage import locked, read_json, write_json

SLURM_MINUTES = 24 * 60  # time limit of a job; SBATCH_TIMELIMIT in the environment takes precedence
SLURM_TRIES = 4  # submissions of a job that keeps ending without a result


class Requeued:
    """The function of a SLURM job: `execute` on a node, requeued at the time limit or if the node is taken away."""

    def __call__(self, job: Dict[str, Any]) -> dict:
        return execute(job, socket.gethostname(), "")

    def checkpoint(self, job: Dict[str, Any]) -> Any:
        """What submitit requeues; the run resumes from its own checkpoint."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, job)


@ENGINES.register("slurm")
class Slurm(Engine):
    """SLURM jobs through submitit: all are queued at once, and continue without this process.

    The jobs are listed in the folder `slurm` of the results, which the nodes share, beside the files of submitit.
    """

    at_once = float("inf")
    CLUSTER: ClassVar[str] = "slurm"  # tests use submitit's other clusters instead

    def __init__(self, address: str, setup: Setup) -> None:
        refuse("slurm", address, "slurm")
        self.submitit = installed("submitit", "slurm")
        for given, option in ((setup.jobs, "--jobs"), (setup.collect, "--collect")):
            if given:
                why = "SLURM decides how many jobs run at a time" if option == "--jobs" else "jobs need a shared folder"
                raise UserError(f"{option}: cannot be used with --on slurm: {why}; leave it out", key="sweep.option")
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
            check_threads(task, "--on slurm")

    def alone(self) -> None:
        """One job at a time, with a node to itself: that of the first job."""
        self.at_once, self._alone = 1, True

    def submit(self, task: Task) -> None:
        """See `Engine`."""
        with locked(_jobs(task), f"{task.key}.lock"):
            job = self._queued(task)
            if job is None:
                executor = self.submitit.AutoExecutor(folder=_jobs(task), cluster=self.CLUSTER)
                # sbatch takes whatever else is required from the environment (SBATCH_PARTITION, SBATCH_ACCOUNT).
                executor.update_parameters(name=task.key, timeout_min=SLURM_MINUTES, nodes=1, tasks_per_node=1)
                executor.update_parameters(cpus_per_task=task.cores)
                if task.gpus:
                    executor.update_parameters(gpus_per_node=task.gpus)
                if self._alone:
                    node = {"nodelist": self._node} if self._node else {}
                    executor.update_parameters(slurm_exclusive=True, slurm_additional_parameters=node)
                # A job sees only the GPUs that SLURM has assigned to it.
                job = executor.submit(Requeued(), task.job(placed=True, shared=True) | {"gpus": 0})
                write_json(_jobs(task) / f"{task.key}.json", {"job": job.job_id})
        self._watched[task.key] = task, job

    def _queued(self, task: Task) -> Any:
        """The job that an earlier sweep has queued for the task; None if there is none."""
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
        """The event of a job that has ended; empty if it is queued again, because its node has died."""
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
    """The folder with the files of SLURM jobs."""
    return Path(os.path.abspath(task.cfg.output)) / "slurm"

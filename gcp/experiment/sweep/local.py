"""The engine that computes the runs of a sweep on this machine."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any, Dict, List, Sequence, Tuple, Union

from gcp.errors import UserError
from gcp.experiment.sweep.base import ENGINES, Began, Ended, Engine, Setup, Task, refuse
from gcp.train import guard


@ENGINES.register("local")
class Local(Engine):
    """Computes tasks in processes on this machine, several at a time, which end with this process."""

    def __init__(self, address: str, setup: Setup) -> None:
        refuse("local", address, "local")
        if setup.collect:
            raise UserError(
                "--collect: only fetches runs from other machines; use it with --on dask://...", "sweep.collect"
            )
        self.script, self.at_once = setup.script, setup.jobs or 1
        self._running: Dict[int, Tuple[Task, subprocess.Popen]] = {}
        self._began: List[Began] = []

    def __exit__(self, *_: Any) -> None:
        guard.end([process for _, process in self._running.values()])

    def submit(self, task: Task) -> None:
        """Start the task in a separate process, which has the configured threads and frees its memory when it ends."""
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
            "--cancel: a local sweep leaves nothing running; use it with --on dask://... or slurm", "sweep.cancel"
        )

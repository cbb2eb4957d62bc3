"""Run many experiments, each in a process of its own: several at a time, then their speeds one after another."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path
from typing import Sequence, Tuple

from gcp.command import Told
from gcp.experiment import record as records
from gcp.experiment.config import Config, load
from gcp.experiment.sweep import Began, Engine, Task

Item = Tuple[Path, Sequence[str], Config]  # a configuration file, its overrides, and the resulting configuration


def reproduce(items: Sequence[Item], engine: Engine, overlays: Sequence[str] = ()) -> int:
    """Run the experiments that are not done on the engine, then measure speeds; returns 0, or the first failure's code.

    Speeds are measured at the end, one run after another on one machine, when no other experiment of these is running.
    UserError: the engine cannot compute these experiments.
    """

    def loaded(again: Sequence[Item]) -> list[Item]:
        return [(path, overrides, load(path, overrides, overlays)) for path, overrides, _ in again]

    todo = [item for item in items if not records.is_done(item[2])]
    engine.check(_tasks(items, overlays))
    print(f"{len(items)} experiments, {len(items) - len(todo)} already done", file=sys.stderr, flush=True)
    try:
        # What starts from another experiment's network may have to wait for it, and has its content in the fingerprint.
        late = [item for item in todo if item[2].model.is_pattern]
        code = _run(_tasks(dense_first([item for item in todo if item not in late]), overlays), engine)
        code = code or _run(_tasks(dense_first(loaded(late)), overlays), engine)
        if code:
            return code
        untimed = [item for item in loaded(items) if not records.is_timed(item[2])]
        if untimed:
            engine.alone()
        return _run(_tasks(untimed, overlays, timed=True), engine)
    except KeyboardInterrupt as told:
        left = engine.left()
        if left is None:
            raise
        print(f"\n{left}", file=sys.stderr, flush=True)
        return 128 + (told.args[0] if isinstance(told, Told) else signal.SIGINT)


def cancel(items: Sequence[Item], engine: Engine, overlays: Sequence[str] = ()) -> str:
    """End what an earlier sweep of the same experiments left running or waiting; returns what was done, in words."""
    return engine.cancel([task for timed in (False, True) for task in _tasks(items, overlays, timed)])


def dense_first(items: Sequence[Item]) -> list[Item]:
    """The experiments, one per dense network before all others, so that no job waits for another's dense network."""
    seen, first, rest = set(), [], []
    for item in items:
        key = (item[2].output, item[2].dense_fingerprint(contents=False))
        (rest if key in seen else first).append(item)
        seen.add(key)
    return first + rest


def _tasks(items: Sequence[Item], overlays: Sequence[str], timed: bool = False) -> list[Task]:
    """A task for each experiment; experiments that would write the same folder become a single task."""
    tasks = [Task(path, tuple(overrides), tuple(overlays), cfg, timed) for path, overrides, cfg in items]
    return list({task.key: task for task in tasks}.values())


def _run(tasks: Sequence[Task], engine: Engine) -> int:
    """Submit the tasks and wait; returns 0 or, once all submitted tasks have ended, the first failure's exit code."""
    numbers = {task.key: number for number, task in enumerate(tasks, 1)}
    waiting, running, n_done, began, failed = list(tasks), set(), 0, time.monotonic(), 0
    while running or (waiting and not failed):
        while waiting and not failed and len(running) < engine.at_once:
            task = waiting.pop(0)
            running.add(task.key)
            engine.submit(task)
            engine.kept_back = len(waiting)
        for event in engine.poll():
            task = event.task
            if isinstance(event, Began):
                left = (time.monotonic() - began) / n_done * (len(tasks) - n_done) / 60 if n_done else None
                about = "" if left is None else f", about {left:.0f} min left in all"
                place = f" on {event.where}" if event.where else ""
                said = f"{task.what} [{numbers[task.key]}/{len(tasks)}] {task.name}{place}{about}"
                print(said, file=sys.stderr, flush=True)
                continue
            running.remove(task.key)
            n_done += 1
            failed = failed or event.code
            for line in event.said if event.code else ():
                print(f"[{task.name}] {line}", file=sys.stderr, flush=True)
        time.sleep(0.05)
    return failed

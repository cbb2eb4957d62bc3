"""Many experiments, each in a process of its own: run several at a time, then measured one after another."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Sequence, Tuple

from gcp.experiment import record as records
from gcp.experiment.config import Config, load
from gcp.train import guard

Item = Tuple[Path, Sequence[str], Config]  # a configuration file, its overrides, and what they give


def reproduce(items: Sequence[Item], script: Path, n_jobs: int, overlays: Sequence[str] = ()) -> int:
    """Run what is not done with `script`, `n_jobs` at a time, then measure speeds; 0, or the first failure's code.

    Speeds are measured at the end, one run after another, when nothing else is running.
    """
    todo = [item for item in items if not records.is_done(item[2])]
    print(f"{len(items)} experiments, {len(items) - len(todo)} done before", file=sys.stderr)
    over = [word for overlay in overlays for word in ("--overlay", overlay)]
    # What starts from another experiment's network may have to wait for one of these, and is named by its content.
    for late in (False, True):
        part = [item for item in todo if item[2].model.is_pattern == late]
        code = _run(dense_first(part), script, n_jobs, "run", *over, "--untimed")
        if code:
            return code
    items = [(path, overrides, load(path, overrides, overlays)) for path, overrides, _ in items]
    return _run([item for item in items if not records.is_timed(item[2])], script, 1, "measure", *over)


def dense_first(items: Sequence[Item]) -> list[Item]:
    """One experiment of each dense network before all others, so that no job waits for another's dense network."""
    seen, first, rest = set(), [], []
    for item in items:
        key = (item[2].output, item[2].dense_fingerprint(contents=False))
        (rest if key in seen else first).append(item)
        seen.add(key)
    return first + rest


def _run(items: Sequence[Item], script: Path, n_jobs: int, what: str, *extra: str) -> int:
    """Run the experiments, `n_jobs` at a time; 0, or the exit code of the first that fails, once the others ended."""
    waiting, running, n_done, began, failed = list(enumerate(items, 1)), {}, 0, time.monotonic(), 0
    try:
        while running or (waiting and not failed):
            for slot in range(n_jobs):
                if slot in running and running[slot].poll() is not None:
                    code, n_done = running.pop(slot).returncode, n_done + 1
                    failed = failed or code
                if slot not in running and waiting and not failed:
                    number, item = waiting.pop(0)
                    left = (time.monotonic() - began) / n_done * (len(items) - n_done) / 60 if n_done else None
                    about = "" if left is None else f", about {left:.0f} min left in all"
                    said = f"{what} [{number}/{len(items)}] {item[2].name} seed {item[2].seed}{about}"
                    print(said, file=sys.stderr, flush=True)
                    running[slot] = _start(item, script, extra, slot)
            time.sleep(0.05)
    finally:
        guard.end(list(running.values()))
    return failed


def _start(item: Item, script: Path, extra: Sequence[str], slot: int) -> subprocess.Popen:
    """An experiment in a process of its own: its threads are its config's, and its memory is given back."""
    path, overrides, _ = item
    sets = [word for override in overrides for word in ("--set", override)]
    command = guard.guarded([sys.executable, str(script), str(path), *sets, *extra])
    return guard.start(command, stdout=subprocess.DEVNULL, env={**os.environ, "TQDM_POSITION": str(slot)})

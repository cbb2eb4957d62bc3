"""Candidates: architectures, each trained once for a while, by which searches choose and qualities are judged.

All are trained alike from new weights, so that one file serves all searches with the same network, data and recipe.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import multiprocessing
import pickle
import time
from collections import Counter
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path

# Optional, not `X | None`: pydantic evaluates the annotations, and Python 3.9 cannot evaluate that form.
from typing import Annotated, Any, Callable, Dict, List, Optional, Sequence, Tuple, Union

from pydantic import Field

from gcp.cost.analytic import macs, params
from gcp.cost.sampling import Count, NotNegative, Schema
from gcp.data.base import Dataset
from gcp.errors import UserError
from gcp.graph.network import Network
from gcp.graph.surgery import redrawn
from gcp.options import Options
from gcp.search.space import Space
from gcp.seeds import Stream
from gcp.storage import drop_torn_line, locked, parse_json, read_text, writing

Fraction = Annotated[float, Field(ge=0, le=1)]
Decided = Union[bool, int, float, str]
FIX = "remove the line, and the architecture will be retrained"


class TrainingOptions(Options):
    """How every candidate is trained, from new weights."""

    epochs: float = Field(4.0, gt=0, le=10**4, description="epochs, above 0")
    lr: float = Field(0.1, gt=0, le=1000, description="highest learning rate, above 0; then a cosine to zero")
    warmup: float = Field(0.1, ge=0, lt=1, description="fraction of the training in which the learning rate rises")
    momentum: float = Field(0.9, ge=0, lt=1, description="in [0, 1)")
    wd: float = Field(5e-4, ge=0, le=1000, description="weight decay, 0 or more")

    def n_steps(self, n_batches: int) -> int:
        """The number of steps, with `n_batches` batches per epoch; at least 1."""
        return max(1, round(self.epochs * n_batches))


class Candidate(Schema):
    """A trained architecture: what differs from the network, and how good it is on validation images.

    `loss` is None if the training diverged.
    """

    identity: Annotated[str, Field(min_length=16, max_length=16)]
    pattern: Dict[Annotated[str, Field(max_length=1000)], Decided]
    top1: Fraction
    loss: Optional[NotNegative]
    n_eval: Count
    macs: NotNegative
    params: NotNegative
    images: Count
    seconds: NotNegative


@dataclass
class Judged:
    """What architectures are judged with.

    `images` counts the images that this takes, by purpose; `folder` belongs to all experiments with the same data and
    network; `jobs` candidates are trained at once, in processes of their own.
    """

    space: Space
    data: Dataset
    task: str
    seed: int
    batch: int
    augment: str
    folder: Path
    jobs: int = 1
    log: Callable[..., None] = lambda event, **values: None
    images: Counter = field(default_factory=Counter)


def identity(space: Space, pattern: Dict[str, Any]) -> str:
    """16 hex digits, equal if two patterns mean the same architecture: decisions about dropped blocks do not count."""
    net, widths = space.rewritten(pattern), space.widths(pattern)
    nodes = [(node.op, node.name, sorted(node.attrs.items())) for node in net.nodes if node.op != "null"]
    groups = [(group, widths[own]) for group, own in space.group_of(net).items()]
    return hashlib.sha256(json.dumps([nodes, groups]).encode()).hexdigest()[:16]


def path_of(judged: Judged, options: TrainingOptions) -> Path:
    """The file of all candidates that are trained by one recipe."""
    key = json.dumps([options.model_dump(), judged.batch, judged.augment, judged.seed])
    return judged.folder / f"candidates-{hashlib.sha256(key.encode()).hexdigest()[:8]}.jsonl"


def read(path: Path) -> List[Candidate]:
    """The candidates in a file. UserError: a line is not a candidate."""
    lines = enumerate(read_text(path).split("\n"), 1)
    return [parse_json(text, Candidate, f"{path}: line {n}", FIX) for n, text in lines if text.strip()]


def lock_of(path: Path, name: str = "lines") -> str:
    """The name of a lock of a file: that of its lines, or that of the candidate of this name."""
    return f".{path.stem}.{name}.lock"


def _known(path: Path) -> Dict[str, Candidate]:
    """The candidates in a file, by identity; none if the file does not exist."""
    with locked(path.parent, lock_of(path)):
        if not path.exists():
            return {}
        drop_torn_line(path)
        return {found.identity: found for found in read(path)}


def trained(
    judged: Judged,
    patterns: Sequence[Dict[str, Any]],
    options: TrainingOptions,
    progress: Callable[[int, int], None] = lambda done, n: None,
) -> List[Candidate]:
    """The candidates of these patterns, trained if the file does not have them; the images of all are counted.

    After a kill, the same call continues with those that are missing. Several processes can train into one file:
    candidates that another process is training are waited for, after all others. UserError: the data cannot be sent to
    other processes.
    """
    path, space = path_of(judged, options), judged.space
    wanted = {identity(space, pattern): pattern for pattern in patterns}
    known: Dict[str, Candidate] = {}
    how = judged.data, judged.task, options, judged.batch, judged.augment, judged.seed

    def missing() -> List[str]:
        known.update(_known(path))
        return [name for name in wanted if name not in known]

    def train(names: Sequence[str]) -> None:
        tasks = ((name, space.network(wanted[name])) for name in names)
        for name, net, facts in _all(tasks, how, min(judged.jobs, len(names))):
            own = {key: value for key, value in wanted[name].items() if value != space.own[key]}
            counts = {"macs": macs(net)(net.widths), "params": params(net)(net.widths)}
            known[name] = Candidate(identity=name, pattern=own, **counts, **facts)
            with locked(path.parent, lock_of(path)), writing(path), open(path, "a", encoding="utf-8") as file:
                file.write(known[name].model_dump_json() + "\n")
            judged.log("candidate", identity=name, **facts)
            progress(sum(other in known for other in wanted), len(wanted))

    others = missing()
    if wanted:
        progress(len(wanted) - len(others), len(wanted))
    # Claiming one at a time, where possible, leaves the rest to other processes in the meantime.
    for some in [[name] for name in others] if judged.jobs == 1 else [others]:
        with contextlib.ExitStack() as claims:
            mine = set()
            for name in some:
                with contextlib.suppress(UserError):  # another process is training it
                    claims.enter_context(locked(path.parent, lock_of(path, name), wait=False))
                    mine.add(name)
            train([name for name in missing() if name in mine])
    for name in missing():
        with locked(path.parent, lock_of(path, name)):  # until it is there, or the process training it has ended
            train([name] if name in missing() else [])
    judged.images["candidates"] += sum(known[name].images for name in wanted)
    return [known[identity(space, pattern)] for pattern in patterns]


def _all(tasks, how: tuple, jobs: int):
    """Yield (name, network, facts) for each task, in any order; trains in `jobs` processes if that is more than one."""
    if jobs <= 1:
        for name, net in tasks:
            yield name, net, _train(net, *how)
        return
    try:
        pickle.dumps(how)
    except (TypeError, AttributeError, pickle.PicklingError) as error:
        wrong = f"the data cannot be sent to other processes ({error})"
        raise UserError(f"architecture.jobs: {wrong}; set it to 1", "architecture.jobs") from None
    from gcp import runtime

    context = multiprocessing.get_context("spawn")  # MXNet does not survive a fork
    with ProcessPoolExecutor(jobs, context, _begin, (runtime.n_threads(), how)) as pool:
        waiting: Dict[Future, Tuple[str, Network]] = {}
        try:
            waiting = {pool.submit(_task, net): (name, net) for name, net in tasks}
            for future in as_completed(waiting):
                yield (*waiting[future], future.result())
        finally:
            for future in waiting:
                future.cancel()


_how: tuple = ()  # in a process of a pool: what all its candidates have in common


def _begin(threads: int, how: tuple) -> None:
    global _how
    import signal

    from gcp import runtime

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that waits for this one will end it
    runtime.use_threads(threads)
    _how = how


def _task(net: Network) -> Dict[str, Any]:
    return _train(net, *_how)


def _train(
    net: Network, data: Dataset, task: str, options: TrainingOptions, batch: int, augment: str, seed: int
) -> Dict[str, Any]:
    """The facts of a candidate after training. All start from the same seed and see the same batches."""
    from gcp.train import loop, schedules
    from gcp.train.losses import Objective
    from gcp.train.optimisers import SGD, DivergedError
    from gcp.train.steps import OrdinaryStep
    from gcp.train.tasks import TASKS

    began, seed = time.monotonic(), Stream.ARCHITECTURES.seed(seed, 1)
    how = TASKS[task]
    step = OrdinaryStep(redrawn(net, seed), Objective(how), lambda b: SGD(b, options.momentum, options.wd), seed)
    n_steps = options.n_steps(data.train.n_batches(batch))
    batches = loop.Batches(data.train, batch, seed, augment)
    try:
        rates = schedules.cosine(options.lr, n_steps, round(options.warmup * n_steps))
        loop.fit(step, batches, rates, name="candidate")
        found = how.evaluate(step.outputs, data.validation)
    except DivergedError:
        found = {"top1": 0.0, "loss": None, "n_eval": len(data.validation)}
    facts = {key: found[key] for key in ("top1", "loss", "n_eval")}
    return {**facts, "images": n_steps * batch, "seconds": round(time.monotonic() - began, 3)}

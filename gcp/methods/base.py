"""What every pruning method is given and gives back, and the registry of methods.

A method is `def name(problem, options, run) -> Outcome` with the class of its options beside it. Configurations are
read before MXNet is imported, so the modules of this room import `gcp.train` and `gcp.backend` inside functions.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, ClassVar, Dict, FrozenSet, List, Protocol, Tuple

from gcp.cost.base import Budget
from gcp.cost.measured import fit_to_measured_budget
from gcp.data.base import Dataset
from gcp.graph.network import Keep, Network
from gcp.graph.surgery import shrink
from gcp.options import Options
from gcp.registry import Registry
from gcp.seeds import Stream


class MethodOptions(Options):
    """The options of a method, and what a table and an estimate have to know of it."""

    PRUNES: ClassVar[bool] = True  # whether it needs a target
    # Of a method that prunes in iterations: options that a search may choose anew for each.
    PER_ITERATION: ClassVar[FrozenSet[str]] = frozenset()

    def label(self, cost: str) -> str:
        """What tables call the method when `cost` is what channels are weighed against."""
        raise NotImplementedError

    def check(self, net: Network, budget: Budget) -> None:
        """UserError: the method cannot prune this network, or not as far. Asked before anything is trained."""
        if self.PRUNES:
            budget.check(net.widths)

    def variant(self) -> Dict[str, str]:
        """Options by which tables tell rows of this method apart even where only one value is there."""
        return {}

    def n_images(self, n_train: int, batch: int, n_renewed: int = 0) -> int:
        """Images that pruning will train on or look at, with `n_train` training images in batches of `batch`.

        `n_renewed` of them are looked at after every cut, for statistics and weights.
        """
        return n_renewed


@dataclass(frozen=True)
class Problem:
    """A trained network to make smaller, the budget, and the data to decide by.

    Methods may use `data.train` and `data.validation`; the test images are for the final result only. `iteration` is
    that of a schedule which asks a criterion again and again, 0 elsewhere. `step`, where there is one, has a block of
    `net` with frozen statistics, which a criterion can take gradients from without building one. `statistics_images`
    are for `with_new_statistics`, which every method calls after every cut, `reconstruction_images` for `cut`. `tuner`
    is there where each iteration's options are to be searched (see `MethodOptions.PER_ITERATION`).
    """

    net: Network
    budget: Budget
    data: Dataset
    seed: int
    batch: int
    augment: str = "none"
    iteration: int = 0
    task: str = "classification"
    step: Any = None
    statistics_images: int = 0
    reconstruction_images: int = 0
    moved: str = "silenced"  # what moves on from a dropped channel: see `surgery.shrink`
    tuner: Any = None  # a `gcp.search.tuning.Tuner`


@dataclass(frozen=True)
class Outcome:
    """The small network; images that it took, by purpose; a row per step of the method, as plain JSON values.

    `searches` are studies of options, as `gcp.search.tuning.Tuner.best` gives them.
    """

    network: Network
    images: Dict[str, int] = field(default_factory=dict)
    history: List[Dict[str, Any]] = field(default_factory=list)
    searches: List[Dict[str, Any]] = field(default_factory=list)


class Run(Protocol):
    """Where a method may keep what it has computed, and say what it does.

    `shared` is a folder of all experiments that start from the same dense network, for what serves them all.
    """

    path: Path
    shared: Path

    def log(self, event: str, **values: Any) -> None:
        """Add an event to the run's log."""


Method = Callable[[Problem, Any, Run], Outcome]
METHODS: Registry[Method] = Registry("pruning method")


def whole_batches(wanted: int, n_train: int, batch: int) -> int:
    """Images that are looked at where so many are wanted: whole batches, an epoch at most."""
    return min(-(-wanted // batch), -(-n_train // batch)) * batch


def cut(problem: Problem, limit: float, choose: Callable[[float], Keep]) -> Tuple[Network, List[dict], Dict[str, int]]:
    """The problem's network without the channels that are not among `choose(cost)`, at a cost of at most `limit`.

    The same for every method: what moves on from dropped channels, and weights fitted by least squares to what the
    network says, if the problem wants them. Also a row for each measurement of `fit_to_measured_budget`, and images by
    purpose.
    """
    from gcp.train.loop import Batches
    from gcp.train.reconstruct import reconstruct

    tried: List[Tuple[Network, Keep]] = []

    def small(aim: float) -> Network:
        keep = choose(aim)
        tried.append((shrink(problem.net, keep, problem.moved), keep))
        return tried[-1][0]

    found, timings = fit_to_measured_budget(problem.budget, limit, small)
    n = whole_batches(problem.reconstruction_images, len(problem.data.train), problem.batch)
    if n:
        keep = next(keep for net, keep in tried if net is found)
        seed = Stream.RECONSTRUCTION.seed(problem.seed, problem.iteration)
        found = reconstruct(
            problem.net, found, keep, Batches(problem.data.train, problem.batch, seed), n // problem.batch
        )
    return found, timings, {"reconstruction": n} if n else {}


def with_new_statistics(problem: Problem, net: Network) -> Tuple[Network, int]:
    """A network that was cut, with batch-norm statistics from training images; and how many images it took.

    The same for every method, so that no method's networks are judged by statistics that others have renewed.
    """
    from gcp.train.loop import Batches
    from gcp.train.statistics import recompute_statistics

    n = whole_batches(problem.statistics_images, len(problem.data.train), problem.batch)
    seed = Stream.STATISTICS.seed(problem.seed, problem.iteration)
    return recompute_statistics(net, Batches(problem.data.train, problem.batch, seed), n // problem.batch), n

"""The interface of pruning methods: what each is given and what it returns, and the registry of methods.

A method is a function `def name(problem, options, run) -> Outcome` with a class for its options beside it.
Configurations are read before MXNet is imported, so the modules of this package import `gcp.train` and `gcp.backend`
inside functions only.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, ClassVar, Dict, FrozenSet, List, Optional, Protocol, Tuple

from gcp.cost.base import Budget
from gcp.cost.measured import fit_to_measured_budget
from gcp.data.base import Dataset
from gcp.graph.network import Keep, Network
from gcp.graph.surgery import shrink
from gcp.options import Options
from gcp.registry import Registry
from gcp.seeds import Stream


class MethodOptions(Options):
    """The options of a method, and what tables and estimates need to know about it."""

    PRUNES: ClassVar[bool] = True  # whether the method needs a target
    # For methods that prune in iterations: the options that a search may choose anew for each iteration.
    PER_ITERATION: ClassVar[FrozenSet[str]] = frozenset()

    def label(self, cost: str) -> str:
        """The method's name in tables, where `cost` is the cost that channels are weighed against."""
        raise NotImplementedError

    def check(self, net: Network, budget: Budget) -> None:
        """Raise UserError if the method cannot prune this network, or not far enough for the budget.

        Called before anything is trained.
        """
        if self.PRUNES:
            budget.check(net.widths)

    def variant(self) -> Dict[str, str]:
        """Options that distinguish rows of this method in tables, even at targets where they have one value only."""
        return {}

    def factors(self) -> Optional[Tuple[str, str]]:
        """The criterion and the allocation, if the method is one cut and these two decide all of it.

        By these, tables separate what a score is worth from what the way of spending the budget is worth.
        """
        return None

    def n_images(self, n_train: int, batch: int, n_renewed: int = 0) -> int:
        """The number of images that pruning will use, given `n_train` training images in batches of `batch`.

        `n_renewed` is the number of images used after every cut, to recompute statistics and refit weights.
        """
        return n_renewed


@dataclass(frozen=True)
class Problem:
    """A trained network to prune, the budget, and the data on which to base decisions.

    Methods may use `data.train` and `data.validation`; the test images are for the final result only. `iteration`
    counts from 1 in methods that score or cut repeatedly, and is 0 elsewhere. `step`, if given, holds a block of `net`
    with frozen statistics, so that a criterion can compute gradients without building one. `statistics_images` is the
    number of images for `with_new_statistics`, which every method calls after every cut, and `reconstruction_images`
    the number for `cut`. `tuner` is given if the options of each iteration are to be searched (see
    `MethodOptions.PER_ITERATION`).
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
    moved: str = "silenced"  # which output of a removed channel moves into the next layer: see `surgery.shrink`
    tuner: Any = None  # a `gcp.search.tuning.Tuner`


@dataclass(frozen=True)
class Outcome:
    """The pruned network, the images used by purpose, and a row per step of the method as plain JSON values.

    `searches` holds studies of options, in the form that `gcp.search.tuning.Tuner.best` returns.
    """

    network: Network
    images: Dict[str, int] = field(default_factory=dict)
    history: List[Dict[str, Any]] = field(default_factory=list)
    searches: List[Dict[str, Any]] = field(default_factory=list)


class Run(Protocol):
    """Where a method can save what it has computed, and log what it does.

    `shared` is a folder common to all experiments that start from the same dense network, for results that they all
    use.
    """

    path: Path
    shared: Path

    def log(self, event: str, **values: Any) -> None:
        """Add an event to the run's log."""


Method = Callable[[Problem, Any, Run], Outcome]
METHODS: Registry[Method] = Registry("pruning method")


def whole_batches(wanted: int, n_train: int, batch: int) -> int:
    """The number of images used if `wanted` are asked for: rounded up to whole batches, at most one epoch."""
    return min(-(-wanted // batch), -(-n_train // batch)) * batch


def cut(problem: Problem, limit: float, choose: Callable[[float], Keep]) -> Tuple[Network, List[dict], Dict[str, int]]:
    """The problem's network cut to the channels `choose(cost)`, at a cost of at most `limit`.

    Common to all methods: moves what removed channels leave behind into the next layers, and, if the problem asks for
    it, fits the weights by least squares to the outputs before the cut. Also returns a row for each measurement of
    `fit_to_measured_budget`, and the images used by purpose.
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
    """The network after a cut with batch-norm statistics recomputed from training images, and the number of images.

    Common to all methods, so that no method's networks are judged with statistics that only others have recomputed.
    """
    from gcp.train.loop import Batches
    from gcp.train.statistics import recompute_statistics

    n = whole_batches(problem.statistics_images, len(problem.data.train), problem.batch)
    seed = Stream.STATISTICS.seed(problem.seed, problem.iteration)
    return recompute_statistics(net, Batches(problem.data.train, problem.batch, seed), n // problem.batch), n

"""How many channels each group keeps, given a score for every channel: the allocations that methods choose from."""

from __future__ import annotations

from dataclasses import replace
from typing import Callable, Iterator, List, Literal, Optional

import numpy as np

from gcp.cost.base import Budget, round_width
from gcp.graph.network import Keep
from gcp.methods.base import Problem
from gcp.methods.criteria import Scores, ranked_by
from gcp.methods.select import highest, least_width, select
from gcp.methods.uniform import kept_uniformly
from gcp.registry import Registry
from gcp.search.solvers import Solver

MAX_LEVELS = 64  # widths per group that the exact allocation considers at a time

# An allocation is a function (scores, budget, limit, max_cut) -> Keep: the channels to keep at a cost of at most
# `limit`, where no group loses more than the fraction `max_cut` unless the limit requires it. One that is registered
# with `per_cost=False` takes costs into account itself, so it gets scores that are not divided by them.
ALLOCATIONS: Registry[Callable[[Scores, Budget, float, float], Keep]] = Registry("allocation")


@ALLOCATIONS.register("global")
def ranked_together(scores: Scores, budget: Budget, limit: float, max_cut: float = 1.0) -> Keep:
    """Rank the channels of all groups together and remove the lowest: see `select`."""
    return select(scores, budget.cost, limit, budget.round_to, max_cut)


@ALLOCATIONS.register("uniform", per_cost=False)
def same_fraction(scores: Scores, budget: Budget, limit: float, max_cut: float = 1.0) -> Keep:
    """Every group keeps the same fraction: see `uniform_widths`."""
    return kept_uniformly(scores, replace(budget, target=limit / budget.original))


@ALLOCATIONS.register("exact", per_cost=False)
def of_most_worth(scores: Scores, budget: Budget, limit: float, max_cut: float = 1.0) -> Keep:
    """The widths whose kept scores have the largest sum: see `solvers.Solver`.

    The summed score that a group keeps is a concave function of its width, since its best channels are kept. For a
    large group, only `MAX_LEVELS` of its widths are considered at first, and then those between the neighbours of the
    one found.
    """
    curves = {name: np.concatenate([[0.0], np.cumsum(np.sort(s)[::-1])]) for name, s in scores.items()}
    sizes = {name: len(s) for name, s in scores.items()}

    def widths_of(name: str, least: float) -> List[int]:
        n = sizes[name]
        all_widths = {round_width(k, n, budget.round_to) for k in range(1, n + 1)}
        return sorted(width for width in all_widths if width >= least) or [n]

    allowed = {name: widths_of(name, least_width(n, max_cut)) for name, n in sizes.items()}
    if budget.cost({name: widths[0] for name, widths in allowed.items()}) > limit:
        allowed = {name: widths_of(name, 0) for name in sizes}
    levels = {name: _thinned(widths) for name, widths in allowed.items()}
    while True:
        gains = {name: curves[name][widths] for name, widths in levels.items()}
        found = Solver(levels, budget.cost).solve(gains, limit).widths
        finer = {name: _thinned(_around(allowed[name], widths, found[name])) for name, widths in levels.items()}
        if all(set(finer[name]) <= set(levels[name]) for name in finer):
            return highest(scores, found)
        levels = finer


def without_effect(allocation: str, max_cut: Optional[float]) -> Iterator[str]:
    """Yield an error message if `max_cut` has no effect with this allocation."""
    if allocation == "uniform" and max_cut is not None:
        yield f"max_cut: {max_cut} has no effect with allocation: uniform, which cuts all groups alike; set only one"


def _thinned(widths: List[int]) -> List[int]:
    """At most `MAX_LEVELS` of the widths, evenly spaced, including the first and the last."""
    at = np.unique(np.linspace(0, len(widths) - 1, min(len(widths), MAX_LEVELS)).round().astype(int))
    return [widths[k] for k in at]


def _around(allowed: List[int], levels: List[int], found: int) -> List[int]:
    """The allowed widths between the neighbours of `found` among the levels."""
    at = levels.index(found)
    low, high = levels[max(0, at - 1)], levels[min(len(levels) - 1, at + 1)]
    return [width for width in allowed if low <= width <= high]


def chooser(
    problem: Problem, criterion: str, allocation: str, per_cost: Optional[bool] = None, max_cut: float = 1.0
) -> Callable[[float], Keep]:
    """A function from a limit on the cost to the channels that a criterion and an allocation keep within it."""
    own = getattr(ALLOCATIONS[allocation], "per_cost", None)
    scores = ranked_by(criterion, problem, own if per_cost is None else per_cost)
    return lambda limit: ALLOCATIONS[allocation](scores, problem.budget, limit, max_cut)


Allocation = Literal[tuple(ALLOCATIONS)]

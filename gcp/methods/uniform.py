"""Uniform pruning, which every other method is compared with, and no pruning at all."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal, Tuple

import numpy as np
from pydantic import Field

from gcp.cost.base import Budget, round_width
from gcp.graph.network import Keep, Widths
from gcp.methods.base import METHODS, MethodOptions, Outcome, Problem, Run, cut, with_new_statistics
from gcp.methods.criteria import CRITERIA, Scores
from gcp.methods.select import highest


class NoneOptions(MethodOptions):
    """No pruning, which has no options."""

    PRUNES: ClassVar[bool] = False

    def label(self, cost: str) -> str:
        """The dense network's name in tables."""
        return "Dense"

    def n_images(self, n_train: int, batch: int, n_renewed: int = 0) -> int:
        """0, since nothing is cut."""
        return 0


@METHODS.register("none", NoneOptions)
def none(problem: Problem, options: NoneOptions, run: Run) -> Outcome:
    """Prune nothing: the dense network with the same fine-tuning."""
    return Outcome(problem.net)


class UniformOptions(MethodOptions):
    """Which channels of a group are removed."""

    criterion: Literal["l1", "random"] = Field(
        "l1", description="the criterion that decides which channels of a group are removed"
    )

    def label(self, cost: str) -> str:
        """The method's name, with the criterion."""
        return f"Uniform ({'L1' if self.criterion == 'l1' else self.criterion})"

    def factors(self) -> Tuple[str, str]:
        """See `MethodOptions`."""
        return self.criterion, "uniform"


@METHODS.register("uniform", UniformOptions)
def uniform(problem: Problem, options: UniformOptions, run: Run) -> Outcome:
    """Keep the same fraction of every group at the budget's cost, with channels chosen by a criterion."""
    budget, scores = problem.budget, CRITERIA[options.criterion](problem)

    def choose(aim: float) -> Keep:
        return kept_uniformly(scores, replace(budget, target=aim / budget.original))

    small, timings, images = cut(problem, budget.target * budget.original, choose)
    if timings:
        run.log("timed", timings=timings)
    small, n_images = with_new_statistics(problem, small)
    return Outcome(small, {"statistics": n_images, **images})


def kept_uniformly(scores: Scores, budget: Budget) -> Keep:
    """The best channels of every group, as many as `uniform_widths` gives it."""
    return highest(scores, uniform_widths({g: len(s) for g, s in scores.items()}, budget))


def uniform_widths(sizes: Widths, budget: Budget) -> Widths:
    """The widths at the largest common fraction of every group that is within the budget, at least one channel each.

    With rounding, the common fraction is coarse (steps of 8 on a layer of 64), so what is left of the budget is spent
    on the groups that rounding has put furthest below the common fraction, at most one block each: the comparison is at
    equal achieved cost, not at equal requested cost.
    """
    limit = budget.target * budget.original

    def at(fraction: float) -> Widths:
        return {g: round_width(max(1, int(fraction * n + 1e-9)), n, budget.round_to) for g, n in sizes.items()}

    # The widths change only where fraction * size is a whole number.
    steps = np.unique(np.concatenate([np.arange(n + 1) / n for n in set(sizes.values())]))
    low, high = 0, len(steps) - 1
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if budget.cost(at(steps[middle])) <= limit else (low, middle - 1)
    widths = at(steps[low])
    for group in sorted(sizes, key=lambda g: widths[g] / sizes[g]):
        size, width = sizes[group], widths[group]
        larger = {**widths, group: min(width + budget.round_to, size)}
        if larger[group] - width == 0 or budget.cost(larger) > limit:
            continue
        widths = larger
    return widths

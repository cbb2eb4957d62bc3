"""One-shot pruning without training: scores, removal, and what the problem asks to be renewed after a cut."""

from __future__ import annotations

from dataclasses import replace
from typing import Dict, Iterator, Literal, Optional, Tuple

from pydantic import Field

from gcp.cost.base import Budget
from gcp.graph.network import Network
from gcp.graph.surgery import fold_gates, with_gates
from gcp.methods.allocation import Allocation, chooser, without_effect
from gcp.methods.base import METHODS, MethodOptions, Outcome, Problem, Run, cut, with_new_statistics
from gcp.methods.criteria import CRITERIA, check_criterion, images_to_score


class OneShotOptions(MethodOptions):
    """How channels are chosen."""

    criterion: Literal[tuple(CRITERIA)] = Field("taylor", description="the criterion by which channels are ranked")
    allocation: Allocation = Field(
        "global",
        description="global: the channels of all groups are ranked together; uniform: every group keeps the same "
        "fraction; exact: the widths maximise the sum of kept scores",
    )
    per_cost: Optional[bool] = Field(
        None,
        description="true: a score is divided by what a channel of its group costs before groups are compared; false: "
        "it is not; by default the criterion decides",
    )
    max_cut: Optional[float] = Field(
        None,
        gt=0,
        lt=1,
        description="largest fraction of a group to remove, unless the target requires more, in (0, 1)",
    )

    def mistakes(self) -> Iterator[str]:
        """See `Options`."""
        yield from without_effect(self.allocation, self.max_cut)

    def check(self, net: Network, budget: Budget) -> None:
        """See `MethodOptions`."""
        super().check(net, budget)
        check_criterion(self.criterion, net)

    def label(self, cost: str) -> str:
        """The method's name, with the criterion."""
        return f"One shot ({self.criterion})"

    def variant(self) -> Dict[str, str]:
        """The allocation, which decides how much of each group is removed."""
        return {"allocation": self.allocation}

    def factors(self) -> Optional[Tuple[str, str]]:
        """See `MethodOptions`; None if another option than these two has its say."""
        return (self.criterion, self.allocation) if self.per_cost is None and self.max_cut is None else None

    def n_images(self, n_train: int, batch: int, n_renewed: int = 0) -> int:
        """Images used for the scores, and those used after the cut."""
        return images_to_score(self.criterion, n_train) + n_renewed


@METHODS.register("one_shot", OneShotOptions)
def one_shot(problem: Problem, options: OneShotOptions, run: Run) -> Outcome:
    """Rank channels once and drop the lowest until the budget is met."""
    budget, gated = problem.budget, replace(problem, net=with_gates(problem.net))
    choose = chooser(gated, options.criterion, options.allocation, options.per_cost, options.max_cut or 1.0)
    small, timings, images = cut(gated, budget.target * budget.original, choose)
    if timings:
        run.log("timed", timings=timings)
    small, n_statistics = with_new_statistics(problem, fold_gates(small))
    images |= {"scoring": images_to_score(options.criterion, len(problem.data.train)), "statistics": n_statistics}
    return Outcome(small, {purpose: n for purpose, n in images.items() if n})

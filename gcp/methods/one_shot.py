"""Pruning in one go, without training: scores, removal, statistics and, if wanted, weights by least squares."""

from __future__ import annotations

from dataclasses import replace
from typing import Dict, List, Literal, Tuple

import numpy as np
from pydantic import Field

from gcp.cost.base import fit_to_measured_budget
from gcp.graph.network import Keep, Network
from gcp.graph.surgery import fold_gates, shrink, with_gates
from gcp.methods.base import METHODS, MethodOptions, Outcome, Problem, Run, n_statistics, with_new_statistics
from gcp.methods.criteria import CRITERIA, images_to_score
from gcp.methods.select import select
from gcp.methods.uniform import uniform_widths
from gcp.seeds import Stream


class OneShotOptions(MethodOptions):
    """How channels are chosen, and what is done for those that are left."""

    criterion: Literal["l1", "random", "paper", "relative", "taylor"] = Field(
        "taylor", description="what a channel is ranked by"
    )
    allocation: Literal["global", "uniform"] = Field(
        "global",
        description="the channels of all groups are ranked together, or the same fraction of every group is kept",
    )
    reconstruction_images: int = Field(
        0,
        ge=0,
        le=10**6,
        description="training images that the weights of every layer are fitted to by least squares, in whole batches; "
        "0: they stay as they are",
    )

    def label(self, cost: str) -> str:
        """With the criterion."""
        return f"One shot ({self.criterion})"

    def variant(self) -> Dict[str, str]:
        """How much of each group goes, and whether weights are fitted."""
        return {"allocation": self.allocation, "reconstruction": "yes" if self.reconstruction_images else "no"}

    def n_images(self, n_train: int, batch: int, n_statistics_images: int = 0) -> int:
        """What scores, statistics and weights are taken from."""
        fitted = n_statistics(self.reconstruction_images, n_train, batch)
        return images_to_score(self.criterion, n_train) + n_statistics_images + fitted


@METHODS.register("one_shot", OneShotOptions)
def one_shot(problem: Problem, options: OneShotOptions, run: Run) -> Outcome:
    """Rank channels once, drop the lowest until the budget is met, and fit what is left without any training."""
    from gcp.train.loop import Batches
    from gcp.train.reconstruct import reconstruct

    net, budget, n_train = with_gates(problem.net), problem.budget, len(problem.data.train)
    scores = CRITERIA[options.criterion](replace(problem, net=net))
    tried: List[Tuple[Network, Keep]] = []

    def choose(aim: float) -> Network:
        if options.allocation == "global":
            keep = select(scores, budget.cost, aim, budget.round_to)
        else:
            widths = uniform_widths(net.widths, replace(budget, target=aim / budget.original))
            keep = {g: np.sort(np.argsort(-scores[g], kind="stable")[:n]) for g, n in widths.items()}
        tried.append((fold_gates(shrink(net, keep, problem.moved)), keep))
        return tried[-1][0]

    small, timings = fit_to_measured_budget(budget, budget.target * budget.original, choose)
    if timings:
        run.log("timed", timings=timings)
    keep = next(keep for tried_net, keep in tried if tried_net is small)
    n_fitted = n_statistics(options.reconstruction_images, n_train, problem.batch)
    if n_fitted:
        seed = Stream.RECONSTRUCTION.seed(problem.seed, problem.iteration)
        batches = Batches(problem.data.train, problem.batch, seed)
        small = reconstruct(problem.net, small, keep, batches, n_fitted // problem.batch)
    small, n_seen = with_new_statistics(problem, small)
    images = {"scoring": images_to_score(options.criterion, n_train), "statistics": n_seen, "reconstruction": n_fitted}
    return Outcome(small, {purpose: n for purpose, n in images.items() if n})

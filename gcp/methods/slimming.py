"""Network slimming: train all weights with an L1 penalty on batch-norm scales, then cut once by these scales.

Liu et al., "Learning Efficient Convolutional Networks through Network Slimming", ICCV 2017. Differences here: the
penalty is a proximal step (soft threshold) after each step of SGD instead of a subgradient, so that scales reach zero;
it is relative, like GCP's; channels that several layers produce together are ranked by the sum of their scales, where
the paper selects channels behind the addition.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Dict, Tuple

from pydantic import Field

from gcp.cost.base import Budget
from gcp.graph.network import Network
from gcp.methods.allocation import chooser
from gcp.methods.base import METHODS, MethodOptions, Outcome, Problem, Run, cut, with_new_statistics
from gcp.methods.criteria import absolute_penalty, check_criterion
from gcp.seeds import Stream


class SlimmingOptions(MethodOptions):
    """The training with the penalty."""

    epochs: float = Field(2.0, gt=0, le=10**4, description="epochs with the penalty, above 0")
    lam: float = Field(
        0.5,
        ge=0,
        le=10**6,
        description="relative penalty: at 1, a scale of mean size, with no gradient to hold it, just reaches zero",
    )
    lr: float = Field(0.05, gt=0, le=1000, description="highest learning rate, above 0")
    momentum: float = Field(0.9, ge=0, lt=1, description="in [0, 1)")
    wd: float = Field(5e-4, ge=0, le=1000, description="weight decay, 0 or more")

    def label(self, cost: str) -> str:
        """The method's name in the literature."""
        return "Network slimming"

    def check(self, net: Network, budget: Budget) -> None:
        """See `MethodOptions`; also raises UserError if a group has no batch-norm scales."""
        super().check(net, budget)
        check_criterion("bn_scale", net)

    def n_steps(self, n_batches: int) -> int:
        """The number of steps with the penalty, given `n_batches` batches per epoch."""
        return max(1, round(self.epochs * n_batches))

    def n_images(self, n_train: int, batch: int, n_renewed: int = 0) -> int:
        """Images for the training with the penalty, and those used after the cut."""
        return self.n_steps(-(-n_train // batch)) * batch + n_renewed


@METHODS.register("slimming", SlimmingOptions)
def slimming(problem: Problem, options: SlimmingOptions, run: Run) -> Outcome:
    """Train with the penalty, then rank the channels of all groups by their scales and remove the lowest."""
    from gcp.train import checkpoints, loop, schedules
    from gcp.train.losses import Objective
    from gcp.train.proximal import SparseSGD
    from gcp.train.steps import OrdinaryStep
    from gcp.train.tasks import TASKS

    data, seed, task = problem.data, Stream.SPARSITY.seed(problem.seed), TASKS[problem.task]
    n_steps = options.n_steps(data.train.n_batches(problem.batch))
    # The area under half a cosine is half of what a constant rate would give.
    penalty = absolute_penalty(problem.net, options.lam, options.lr / 2, n_steps)

    def trained(checkpoint: Path) -> Tuple[Network, Dict]:
        def optimiser(block) -> SparseSGD:
            return SparseSGD(problem.net, block, penalty, options.momentum, options.wd)

        step = OrdinaryStep(problem.net, Objective(task), optimiser, seed)
        batches = loop.Batches(data.train, problem.batch, seed, problem.augment)
        rates = schedules.cosine(options.lr, n_steps)

        def say(**facts) -> None:
            run.log("epoch", stage="slimming", **facts)

        loop.fit(step, batches, rates, name="slimming", checkpoint=checkpoint, log=say)
        return step.network(), {}

    sparse, _ = checkpoints.run_once(run.path / "slimming-sparse", trained)
    sparse = replace(problem, net=sparse)
    choose = chooser(sparse, "bn_scale", "global")
    small, timings, images = cut(sparse, problem.budget.target * problem.budget.original, choose)
    if timings:
        run.log("timed", timings=timings)
    small, n_statistics = with_new_statistics(sparse, small)
    images |= {"sparsity": n_steps * problem.batch, "statistics": n_statistics}
    return Outcome(small, {purpose: n for purpose, n in images.items() if n})

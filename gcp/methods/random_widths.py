"""Random widths, the best of several draws by validation: what every search for widths has to beat.

Li & Talwalkar, "Random search and reproducibility for neural architecture search", UAI 2019, and Radosavovic et al.,
"On network design spaces for visual recognition", ICCV 2019: a search is worth what it finds beyond as many random
draws.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Dict, Tuple

import numpy as np
from pydantic import Field

from gcp.cost.base import Budget, largest_scale, round_width
from gcp.errors import UserError
from gcp.graph.network import Keep, Network, Widths
from gcp.methods.base import METHODS, MethodOptions, Outcome, Problem, Run, cut, with_new_statistics
from gcp.methods.criteria import CRITERIA
from gcp.methods.select import highest
from gcp.seeds import Stream


class RandomWidthsOptions(MethodOptions):
    """How many random widths are tried, and how each try is judged."""

    tries: int = Field(8, ge=1, le=10**4, description="number of width vectors to try, 1 or more")
    spread: float = Field(
        4.0, ge=1, le=1000, description="largest ratio between the fractions of two groups, before rounding"
    )
    epochs: float = Field(0.25, ge=0, le=10**4, description="epochs for which each try is trained, 0 or more")
    lr: float = Field(0.05, gt=0, le=1000, description="highest learning rate of that training, above 0")
    momentum: float = Field(0.9, ge=0, lt=1, description="in [0, 1)")
    wd: float = Field(5e-4, ge=0, le=1000, description="weight decay, 0 or more")

    def label(self, cost: str) -> str:
        """The method's name, with the number of tries."""
        return f"Random widths, best of {self.tries}"

    def n_steps(self, n_batches: int) -> int:
        """The number of steps for which each try is trained, given `n_batches` batches per epoch."""
        return round(self.epochs * n_batches)

    def n_images(self, n_train: int, batch: int, n_renewed: int = 0) -> int:
        """Images used for all tries."""
        return self.tries * (self.n_steps(-(-n_train // batch)) * batch + n_renewed)


@METHODS.register("random_widths", RandomWidthsOptions)
def random_widths(problem: Problem, options: RandomWidthsOptions, run: Run) -> Outcome:
    """Draw widths that meet the budget, keep the channels of largest L1 norm, train briefly, and take the best network.

    The fractions of the groups are log-uniform, and scaled together until the cost is met. The validation loss decides.
    """
    tried, images = [], {"tries": 0, "statistics": 0, "reconstruction": 0}
    scores = CRITERIA["l1"](problem)
    for number in range(1, options.tries + 1):
        net, facts = _try(replace(problem, iteration=number), scores, options, run)
        images = {purpose: n + facts["images"].get(purpose, 0) for purpose, n in images.items()}
        row = {"try": number, "validation_loss": facts["loss"], "widths": net.widths}
        if facts["timings"]:
            row["timings"] = facts["timings"]
        run.log("try", **row)
        tried.append((net, row))
    finite = [(net, row) for net, row in tried if row["validation_loss"] is not None]
    if not finite:
        raise UserError("all networks of random widths diverged; lower prune.random_widths.lr", "random_widths.lr")
    net, _ = min(finite, key=lambda found: found[1]["validation_loss"])
    return Outcome(net, {purpose: n for purpose, n in images.items() if n}, [row for _, row in tried])


def _try(
    problem: Problem, scores: Dict[str, np.ndarray], options: RandomWidthsOptions, run: Run
) -> Tuple[Network, dict]:
    """One network of random widths, trained briefly, and its loss (None if it diverged), images and timings."""
    from gcp.train import checkpoints, loop, schedules
    from gcp.train.losses import Objective
    from gcp.train.optimisers import SGD, DivergedError
    from gcp.train.steps import OrdinaryStep
    from gcp.train.tasks import TASKS

    data, task, seed = problem.data, TASKS[problem.task], Stream.WIDTHS.seed(problem.seed, problem.iteration)
    rng = np.random.default_rng(seed)
    fractions = {name: options.spread ** rng.uniform(-0.5, 0.5) for name in scores}

    def choose(aim: float) -> Keep:
        return highest(scores, scaled_widths({g: len(s) for g, s in scores.items()}, fractions, problem.budget, aim))

    def cut_and_train(checkpoint: Path) -> Tuple[Network, dict]:
        small, timings, images = cut(problem, problem.budget.target * problem.budget.original, choose)
        small, images["statistics"] = with_new_statistics(problem, small)
        step = OrdinaryStep(small, Objective(task), lambda block: SGD(block, options.momentum, options.wd), seed)
        n_steps, loss = options.n_steps(data.train.n_batches(problem.batch)), None
        batches = loop.Batches(data.train, problem.batch, seed, problem.augment)
        name = f"random widths {problem.iteration}/{options.tries}"
        try:
            if n_steps:
                loop.fit(step, batches, schedules.cosine(options.lr, n_steps), name=name, checkpoint=checkpoint)
            loss = task.evaluate(step.outputs, data.validation)["loss"]
        except DivergedError as error:
            n_steps = error.steps
        images["tries"] = n_steps * problem.batch
        return step.network(), {"loss": loss, "images": images, "timings": timings}

    return checkpoints.run_once(run.path / f"try-{problem.iteration}", cut_and_train)


def scaled_widths(sizes: Widths, fractions: Dict[str, float], budget: Budget, limit: float) -> Widths:
    """The largest widths in these proportions whose cost is within the limit; none exceeds its group's size."""

    def at(scale: float) -> Widths:
        wanted = {g: min(n, max(1, int(scale * fractions[g] * n))) for g, n in sizes.items()}
        return {g: round_width(wanted[g], n, budget.round_to) for g, n in sizes.items()}

    # A little beyond the scale at which all groups are whole, which neither bisection nor rounding would reach itself.
    return at(largest_scale(at, budget.cost, limit, (1 + 1e-9) / min(fractions.values())))

"""GCP: regularise, prune by global importance, recover, T times over (Khetan & Karnin 2020, section 4).

Takes a trained network, a budget and data, and returns a network that is actually smaller, trained as far as eq. 7
goes; all weights are fine-tuned elsewhere.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Callable, ClassVar, Container, Dict, FrozenSet, Iterator, Literal, Optional, Tuple

import numpy as np
from pydantic import Field, field_validator

from gcp.cost.base import COSTS, Budget, Cost, minimum_widths
from gcp.graph.network import Network, scale_arrays
from gcp.graph.surgery import fold_gates, rescale, with_gates
from gcp.methods.allocation import Allocation, chooser, without_effect
from gcp.methods.base import METHODS, MethodOptions, Outcome, Problem, Run, cut, with_new_statistics
from gcp.methods.criteria import CRITERIA, absolute_penalty, check_criterion, images_to_score
from gcp.options import changed, listed
from gcp.search.options import Range, Search
from gcp.seeds import Stream


class GcpOptions(MethodOptions):
    """The schedule of regularise, prune, recover."""

    PER_ITERATION: ClassVar[FrozenSet[str]] = frozenset(
        "score allocation max_cut penalised regularise_epochs recover_epochs lr recover_lr recover_weights momentum "
        "lam".split()
    )

    score: Literal[tuple(CRITERIA)] = Field("taylor", description="the criterion by which channels are ranked")
    allocation: Allocation = Field(
        "global",
        description="global: all groups ranked together, as in the paper; others: see prune.one_shot.allocation",
    )
    iterations: int = Field(4, ge=1, le=10**4, description="number of steps to the target, 1 or more")
    schedule: Literal["equal", "geometric"] = Field(
        "geometric", description="steps of equal cost (the paper's) or of equal ratio of costs"
    )
    max_cut: Optional[float] = Field(
        None,
        gt=0,
        lt=1,
        description="largest fraction of a group that one iteration may remove, unless the target requires more, in "
        "(0, 1)",
    )
    penalised: Literal["all", "removable"] = Field(
        "all",
        description="which scales are penalised: those of all groups (the paper's), or only of groups that can be cut, "
        "since a group at its smallest width keeps its channels in any case",
    )
    regularise_epochs: float = Field(1.0, gt=0, le=10**4, description="epochs with the penalty per iteration, above 0")
    recover_epochs: float = Field(
        1.0, ge=0, le=10**4, description="epochs without the penalty per iteration, 0 or more"
    )
    lr: float = Field(0.01, gt=0, le=1000, description="learning rate with the penalty, above 0")
    recover_lr: float = Field(0.01, gt=0, le=1000, description="learning rate without the penalty, above 0")
    recover_weights: Literal["scales", "all"] = Field(
        "scales",
        description="what is trained without the penalty: scales, shifts and the output layer (the paper's eq. 7), or "
        "all weights",
    )
    momentum: float = Field(0.9, ge=0, lt=1, description="in [0, 1)")
    lam: Tuple[Annotated[float, Field(ge=0, le=10**6)], ...] = Field(
        (0.1,),
        min_length=1,
        max_length=100,
        description="a list of penalties, such as [0.1]; if several, a search in the first iteration picks the best",
    )

    _lists = field_validator("lam", mode="before")(listed)

    def mistakes(self) -> Iterator[str]:
        """See `Options`."""
        yield from without_effect(self.allocation, self.max_cut)
        if len(set(self.lam)) < len(self.lam):
            yield f"lam: {list(self.lam)} contains a duplicate value; list each penalty once"

    def check(self, net: Network, budget: Budget) -> None:
        """See `MethodOptions`."""
        super().check(net, budget)
        check_criterion(self.score, net)

    def label(self, cost: str) -> str:
        """The paper's name for the method, given the cost that channels are weighed against."""
        return COSTS[cost].method

    def variant(self) -> Dict[str, str]:
        """The criterion by which GCP ranks channels."""
        return {"score": self.score}

    def n_steps(self, n_batches: int) -> Tuple[int, int]:
        """Steps of one iteration's regularise and recover phases, given `n_batches` batches per epoch."""
        return max(1, round(self.regularise_epochs * n_batches)), round(self.recover_epochs * n_batches)

    def n_images(self, n_train: int, batch: int, n_renewed: int = 0) -> int:
        """Images for all iterations, and for the first one again for every further penalty that is tried."""
        one = sum(self.n_steps(-(-n_train // batch))) * batch + images_to_score(self.score, n_train) + n_renewed
        return (self.iterations + len(self.lam) - 1) * one


# ---- regularise: proximal gradient ---------------------------------------------------------------------------------


def channel_penalties(net: Network, cost: Cost, kept: Container[str] = ()) -> Dict[str, float]:
    """c_g of eq. 6: the drop in total cost when one channel of group g is removed, scaled to mean 1 over groups.

    0 for the groups in `kept`, which lose no channels. A penalty would drive their scales to zero all the same, most of
    all in the first layers, where a channel costs most; their channels would stay, but nothing would pass through them.
    """
    drop = cost.marginal(net.widths)
    mean = float(np.mean(list(drop.values())))
    return {name: 0.0 if name in kept else value / mean for name, value in drop.items()}


# ---- the schedule --------------------------------------------------------------------------------------------------


def fraction_kept(t: int, n: int, target: float, schedule: str) -> float:
    """Fraction of the original cost to keep after iteration t of n: equal steps (the paper's) or equal ratios."""
    return 1 - t / n * (1 - target) if schedule == "equal" else target ** (t / n)


@METHODS.register("gcp", GcpOptions)
def gcp(problem: Problem, options: GcpOptions, run: Run) -> Outcome:
    """Prune by T iterations of regularise, prune, recover (Khetan & Karnin 2020, section 4).

    The run's folder holds the networks and checkpoints of the phases (a network that is already there is not computed
    again); its log gets a line per epoch and per iteration. If options are searched, every iteration is tried with
    several sets of values, all from the same network, and the one with the lowest validation loss after recovering is
    kept. Several values of `lam` are such a search in the first iteration alone.
    """
    from gcp.train.optimisers import DivergedError

    rows, searches, images, tuner = [], [], Counter(), problem.tuner or _penalties_tuner(problem, options, run)
    for t in range(1, options.iterations + 1):
        problem, before = replace(problem, iteration=t), sum(images.values())
        if tuner is None:
            try:
                net, row = _iteration(problem, options, run, images)
            except DivergedError as error:
                error.images = sum(images.values())
                raise
        else:
            later = (options.iterations - t) * tuner.search.trials if problem.tuner else 0
            (net, row), trial, study = tuner.best(_attempt(problem, options), t, later)
            images += trial.images
            images["search"] += sum(row["images"] for row in study["trials"] if row["trial"] != trial.number)
            searches.append(study)
            if problem.tuner is None:
                options, tuner = changed(options, trial.values), None
        row, problem = {**row, "images": sum(images.values()) - before}, replace(problem, net=net)
        rows.append(row)
        run.log("iteration", **row)
    return Outcome(problem.net, dict(images), rows, searches)


def _penalties_tuner(problem: Problem, options: GcpOptions, run: Run) -> Any:
    """A tuner that tries the values of `lam`, or None if there is only one."""
    if len(options.lam) == 1:
        return None
    from gcp.search.tuning import Tuner

    search = Search(trials=len(options.lam), sampler="grid", parameters={"lam": Range(choices=options.lam)})
    return Tuner(search, search.parameters, {}, problem.seed, run.path, run.log)


def _attempt(problem: Problem, options: GcpOptions) -> Callable[[Any], Tuple[Tuple[Network, Dict[str, Any]], float]]:
    """One iteration as a trial of a search: it uses the trial's values, and keeps its network in the trial's folder."""
    from gcp.train.checkpoints import run_once

    def attempt(trial: Any) -> Tuple[Tuple[Network, Dict[str, Any]], float]:
        def compute(_: Path) -> Tuple[Network, dict]:
            net, row = _iteration(problem, changed(options, trial.values), trial, trial.images, trial.report)
            return net, {"row": row, "images": trial.images}

        net, facts = run_once(trial.path / f"gcp-{problem.iteration}", compute)
        trial.images = Counter(facts["images"])
        return (net, facts["row"]), facts["row"]["loss_recovered"]

    return attempt


def _iteration(
    problem: Problem,
    options: GcpOptions,
    run: Run,
    images: Counter,
    report: Optional[Callable[[int, Optional[float]], None]] = None,
) -> Tuple[Network, Dict[str, Any]]:
    """One round of regularise, prune, recover (sections 4.3 and 4.4); `images` counts the images used, by purpose.

    `report` receives the step and the validation loss after every epoch of the recover phase but the last, and may end
    it.
    """
    from gcp.train import checkpoints, loop, optimisers, schedules
    from gcp.train.losses import Objective
    from gcp.train.steps import OrdinaryStep, ProximalStep
    from gcp.train.tasks import TASKS

    p, t, budget, data, batch = options, problem.iteration, problem.budget, problem.data, problem.batch
    prefix, (lam, *_) = run.path / f"gcp-{t}", p.lam
    limit = fraction_kept(t, p.iterations, budget.target, p.schedule) * budget.original
    n_regularise, n_recover = p.n_steps(data.train.n_batches(batch))
    net, task = rescale(with_gates(problem.net)), TASKS[problem.task]
    variables, objective = scale_arrays(net), Objective(task)
    strength = absolute_penalty(net, lam, p.lr, n_regularise)
    least = minimum_widths(net.widths, budget.round_to)
    kept = {name for name, n in net.widths.items() if n <= least[name]} if p.penalised == "removable" else ()
    penalties = {name: strength * c for name, c in channel_penalties(net, budget.price, kept).items()}

    def train(step: OrdinaryStep, name: str, seed: int, schedule: schedules.Schedule) -> None:
        done = 0

        def say(**facts: Any) -> None:
            nonlocal done
            done = facts["step"]
            run.log("epoch", stage=f"{prefix.name}-{name}", **facts)
            if report is not None and name == "recover" and done < schedule.n_steps:
                report(done, task.evaluate(step.outputs, data.validation)["loss"])

        def compute(checkpoint: Path) -> Tuple[Network, dict]:
            loop.fit(
                step,
                loop.Batches(data.train, batch, seed, problem.augment),
                schedule,
                name=f"GCP {t}/{p.iterations} {name}",
                checkpoint=checkpoint,
                log=say,
            )
            return step.network(), {}

        try:
            if schedule.n_steps:
                step.load(checkpoints.run_once(Path(f"{prefix}-{name}"), compute)[0])
            images[name] += schedule.n_steps * batch
        except Exception as error:  # a trial's images are counted however it ends
            images[name] += getattr(error, "steps", done) * batch
            raise

    seed = Stream.REGULARISE.seed(problem.seed, t)
    step = ProximalStep(net, objective, penalties, p.momentum, seed)
    train(step, "regularise", seed, schedules.constant(p.lr, n_regularise))
    net, regularised = step.network(), task.evaluate(step.outputs, data.validation)
    choose = chooser(replace(problem, net=net, step=step), p.score, p.allocation, max_cut=p.max_cut or 1.0)
    images["scoring"] += images_to_score(p.score, len(data.train))

    def smaller(_: Path) -> Tuple[Network, dict]:
        small, timings, n_images = cut(replace(problem, net=net), limit, choose)
        return small, {"timings": timings, "n_images": n_images}

    # A decision by measured times has to be saved: a resumed run could decide otherwise.
    timed = budget.measure is not None
    net, found = checkpoints.run_once(Path(f"{prefix}-cut"), smaller) if timed else smaller(prefix)
    images += found.pop("n_images", {})
    net, n_statistics = with_new_statistics(problem, net)
    images["statistics"] += n_statistics
    seed = Stream.RECOVER.seed(problem.seed, t)
    if p.recover_weights == "all":
        net, variables = fold_gates(net), None
    step = OrdinaryStep(net, objective, lambda block: optimisers.SGD(block, p.momentum), seed, variables)
    pruned = task.evaluate(step.outputs, data.validation)
    train(step, "recover", seed, schedules.cosine(p.recover_lr, n_recover))
    net, recovered = fold_gates(step.network()), task.evaluate(step.outputs, data.validation)
    if recovered["loss"] is None:
        raise optimisers.DivergedError(f"GCP iteration {t}: the validation loss is not finite after recovering")
    row = {
        "iteration": t,
        "lam": lam,
        "penalty": strength,
        "cost_kept": budget.cost(net.widths) / budget.original,
        "loss_regularised": regularised["loss"],
        "loss_pruned": pruned["loss"],
        "loss_recovered": recovered["loss"],
        f"{task.metric}_recovered": recovered[task.metric],
        "widths": net.widths,
        **(found if timed else {}),
    }
    return net, row

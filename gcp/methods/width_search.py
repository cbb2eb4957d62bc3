"""OWS and AOWS: widths chosen by an exact solver, from a slimmable network's losses at each width of each group.

Berman et al., "AOWS: Adaptive and Optimal Network Width Search with Latency Constraints", CVPR 2020, sections 3.2 to
3.4. Differences here: any network, also with residual ties (see `gcp.search.solvers`), and any cost that is a sum of
terms; gains by least squares instead of marginal means; the temperature is in units of the gains' spread; the slimmable
network is trained as in `gcp.train.slimmable`. The final network keeps the slimmable network's weights;
`finetune.from_scratch` draws new ones, as in the paper.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Tuple

import numpy as np
from pydantic import Field

from gcp.cost.base import Budget, Cost
from gcp.cost.measured import solve_to_measured_budget
from gcp.errors import UserError
from gcp.graph.network import Network, Widths
from gcp.graph.surgery import cut, redrawn, resized
from gcp.methods.base import METHODS, MethodOptions, Outcome, Problem, Run, with_new_statistics
from gcp.search import statistics
from gcp.search.solvers import Solver
from gcp.seeds import Stream

Levels = Dict[str, List[int]]
RENEWALS = 100  # of AOWS's probabilities during a training, approximately
ALIVE = 0.01  # smallest probability of a width that still counts as alive
SHOWN = 20  # states of the narrowing that a record keeps


class OwsOptions(MethodOptions):
    """The grid of widths, the training of the slimmable network, and the estimation of gains."""

    levels: int = Field(14, ge=2, le=1000, description="widths per group, evenly spaced, before rounding to multiples")
    narrowest: float = Field(0.2, gt=0, le=10, description="narrowest width, as a fraction of the group's own, above 0")
    widest: float = Field(
        1.5, gt=0, le=10, description="widest width, as a fraction of the group's own, above narrowest"
    )
    epochs: float = Field(10.0, gt=0, le=10**4, description="epochs of slimmable training, above 0")
    lr: float = Field(0.05, gt=0, le=1000, description="highest learning rate of that training, above 0")
    momentum: float = Field(0.9, ge=0, lt=1, description="in [0, 1)")
    wd: float = Field(1e-4, ge=0, le=1000, description="weight decay, 0 or more")
    share: float = Field(
        0.5, gt=0, le=1, description="fraction of each batch on which the widest network is trained, in (0, 1]"
    )
    hold: int = Field(4, ge=1, le=10**4, description="steps for which the same random widths are trained")
    estimator: statistics.Estimator = Field(
        "least_squares",
        description="how gains are estimated from the losses: jointly, or by marginal means (the paper's)",
    )
    window: float = Field(
        0.5,
        gt=0,
        le=1,
        description="last fraction of the steps, from which gains are estimated; for AOWS, that of its warm-up",
    )

    def mistakes(self) -> Iterator[str]:
        """See `Options`."""
        if self.narrowest >= self.widest:
            yield f"narrowest: {self.narrowest} is not below widest: {self.widest}"

    def label(self, cost: str) -> str:
        """The method's name in the literature."""
        return "OWS"

    def grid(self, widths: Widths, round_to: int) -> Levels:
        """The widths that each group may have: the nearest multiples of `round_to`, none beyond the widest.

        UserError: every group has only one width.
        """
        fractions = np.linspace(self.narrowest, self.widest, self.levels)

        def of(n: int) -> List[int]:
            nearest = np.floor(fractions * n / round_to + 0.5).astype(int) * round_to
            most = max(min(n, round_to), int(self.widest * n + 1e-9) // round_to * round_to)
            return sorted(set(np.clip(nearest, min(n, round_to), most).tolist()))

        found = {name: of(n) for name, n in widths.items()}
        if all(len(of) == 1 for of in found.values()):
            wrong = f"rounded to multiples of {round_to}, every group has only one width"
            raise UserError(
                f"prune.round_to: {wrong}; lower it, or set narrowest and widest further apart", "search.grid"
            )
        return found

    def check(self, net: Network, budget: Budget) -> None:
        """Raise UserError if even the narrowest network exceeds the budget."""
        solver = Solver(self.grid(net.widths, budget.round_to), budget.cost)
        lowest = solver.lowest / budget.original
        if lowest > budget.target:
            least = f"with every group at its narrowest, {lowest:.4f} of the cost remains"
            raise UserError(
                f"prune.target: {budget.target:g} cannot be reached: {least}; give a target of at least "
                f"{np.ceil(lowest * 1e4) / 1e4:.4f}, or lower narrowest",
                "budget.target",
            )

    def gains(self, drawn: Any, levels: Levels, n_steps: int) -> statistics.Gains:
        """What each level of each group is worth, from what a training of `n_steps` steps has drawn so far."""
        return statistics.gains_of(drawn, levels, self.estimator, self.window)

    def n_steps(self, n_batches: int) -> int:
        """The number of steps of slimmable training, given `n_batches` batches per epoch."""
        return max(1, round(self.epochs * n_batches))

    def n_images(self, n_train: int, batch: int, n_renewed: int = 0) -> int:
        """Images times the networks trained on them: the widest on its share of each batch, two others on all of it."""
        return round(self.n_steps(-(-n_train // batch)) * batch * (2 + self.share)) + n_renewed

    def key(self, round_to: int) -> str:
        """8 hex digits that two sets of options have in common if they train the same network."""
        apart = {"estimator", "window"}
        text = f"{type(self).__name__} {round_to} {self.model_dump_json(exclude=apart)}"
        return hashlib.sha256(text.encode()).hexdigest()[:8]


class AowsOptions(OwsOptions):
    """OWS's options, and how widths are given up during the training."""

    warmup: float = Field(0.25, ge=0, lt=1, description="fraction of the training in which all widths are drawn alike")
    hottest: float = Field(
        1.0, gt=0, le=10**6, description="temperature after the warm-up, in units of the mean spread of a group's gains"
    )
    coldest: float = Field(0.02, gt=0, le=10**6, description="temperature at the end; it falls to this geometrically")

    def mistakes(self) -> Iterator[str]:
        """See `Options`."""
        yield from super().mistakes()
        if self.coldest > self.hottest:
            yield f"coldest: {self.coldest} is above hottest: {self.hottest}"

    def label(self, cost: str) -> str:
        """The method's name in the literature."""
        return "AOWS"

    def n_warmup(self, n_steps: int) -> int:
        """The number of steps in which all widths are drawn with equal probability, 1 or more."""
        return max(1, round(self.warmup * n_steps))

    def gains(self, drawn: Any, levels: Levels, n_steps: int) -> statistics.Gains:
        """Gains from the last part of the warm-up on; widths that have been given up keep their gain from then."""
        return statistics.gains_of(drawn, levels, self.estimator, self.window, self.n_warmup(n_steps))


@METHODS.register("ows", OwsOptions)
def ows(problem: Problem, options: OwsOptions, run: Run) -> Outcome:
    """Train a slimmable network with all widths drawn alike, and take the best widths within the budget.

    The training is the same for every budget, so experiments that share a dense network share it too.
    """
    prefix = shared_prefix(run.shared, options, problem.budget.round_to)
    net, drawn = trained(problem, options, prefix, run)
    return _outcome(problem, options, net, drawn, run)


@METHODS.register("aows", AowsOptions)
def aows(problem: Problem, options: AowsOptions, run: Run) -> Outcome:
    """Train a slimmable network whose widths are drawn ever closer to the best within the budget, and take these."""
    narrowing = Narrowing(problem, options)
    net, drawn = trained(problem, options, run.path / "slimmable", run, narrowing)
    return _outcome(problem, options, net, drawn, run, narrowing.rows(drawn))


class Narrowing:
    """AOWS's policy: each group's width is drawn from its own marginal of a Gibbs distribution (section 3.4).

    The distribution is over the widths of all groups jointly, at the price at which the best of them meet the budget.
    """

    def __init__(self, problem: Problem, options: AowsOptions) -> None:
        self._options, self._budget = options, problem.budget
        self._n_steps = options.n_steps(problem.data.train.n_batches(problem.batch))
        self._levels = options.grid(problem.net.widths, problem.budget.round_to)
        self._solver = Solver(self._levels, problem.budget.cost)
        self.first = options.n_warmup(self._n_steps)

    @property
    def renew(self) -> int:
        """The number of steps after which the policy is asked again."""
        return -(-self._n_steps // (RENEWALS * self._options.hold)) * self._options.hold

    def temperature(self, step: int) -> float:
        """The temperature at a step, in units of the mean spread of gains."""
        done = (step - self.first) / max(1, self._n_steps - self.first)
        return float(self._options.hottest * (self._options.coldest / self._options.hottest) ** min(1.0, done))

    def __call__(self, step: int, drawn: Any) -> Optional[Dict[str, np.ndarray]]:
        """See `gcp.train.slimmable.Policy`."""
        if step < self.first:
            return None
        gains = self._options.gains(drawn, self._levels, self._n_steps)
        spread = float(np.mean([np.ptp(of) for of in gains.values()]))
        if spread == 0:
            return None
        limit = self._budget.target * self._budget.original
        return self._solver.marginals(gains, limit, self.temperature(step) * spread)

    def rows(self, drawn: Any) -> List[Dict[str, Any]]:
        """Evenly spaced states of the narrowing: for each group, how many widths were still alive."""
        asked = range(0, self._n_steps, self.renew)
        rows = []
        for step in [asked[k] for k in np.unique(np.linspace(0, len(asked) - 1, SHOWN).round().astype(int))]:
            p = self(step, replace(drawn, levels=drawn.levels[:step], differences=drawn.differences[:step]))
            alive = {name: int((p[name] >= ALIVE).sum()) if p else len(of) for name, of in self._levels.items()}
            rows.append({"step": int(step), "temperature": self.temperature(step) if p else None, "alive": alive})
        return rows


def shared_prefix(folder: Path, options: OwsOptions, round_to: int) -> Path:
    """The path prefix of the slimmable network that all experiments with the same dense network share."""
    return folder / f"slimmable-{options.key(round_to)}"


def trained(
    problem: Problem, options: OwsOptions, prefix: Path, run: Run, narrowing: Optional[Narrowing] = None
) -> Tuple[Network, Any]:
    """The slimmable network and the widths it drew, both saved under `prefix`: trained once, then read back."""
    from gcp import storage
    from gcp.train import checkpoints, loop, schedules
    from gcp.train.distributed import process_group
    from gcp.train.optimisers import SGD
    from gcp.train.slimmable import Sampling, SlimmableStep
    from gcp.train.tasks import TASKS

    data, seed = problem.data, Stream.SLIMMABLE.seed(problem.seed)
    levels, path = options.grid(problem.net.widths, problem.budget.round_to), statistics.path_of(prefix)

    def compute(checkpoint: Path) -> Tuple[Network, Dict[str, Any]]:
        net = redrawn(resized(problem.net, {name: of[-1] for name, of in levels.items()}), seed)
        how = Sampling(levels, options.hold, options.share)
        if narrowing is not None:
            how = replace(how, policy=narrowing, renew=narrowing.renew)
        step = SlimmableStep(
            net, TASKS[problem.task], lambda block: SGD(block, options.momentum, options.wd), how, seed
        )
        n_steps = options.n_steps(data.train.n_batches(problem.batch))
        batches = loop.Batches(data.train, problem.batch, seed, problem.augment)

        def say(**facts: Any) -> None:
            run.log("epoch", stage="slimmable", **facts)

        rates = schedules.cosine(options.lr, n_steps)
        loop.fit(step, batches, rates, name="slimmable network", checkpoint=checkpoint, log=say)
        header = statistics.Header(
            network=problem.net.name,
            input=problem.net.input_shape,
            classes=problem.net.n_classes,
            data=data.name,
            seed=problem.seed,
            batch=problem.batch,
            sizes=problem.net.widths,
            levels=levels,
        )
        statistics.write(path, header, step.drawn())
        return step.network(), {}

    with storage.locked(prefix.parent, f"{prefix.name}.lock"):
        if process_group().rank == 0 and not path.exists():  # without its statistics, the network is of no use
            Path(f"{prefix}.json").unlink(missing_ok=True)
        net, _ = checkpoints.run_once(prefix, compute)
        process_group().broadcast_file(path)
        return net, statistics.read(path).drawn


def narrow(net: Network, widths: Widths) -> Network:
    """The slimmable network cut to the first channels of each group, as many as its width."""
    return cut(net, {name: range(n) for name, n in widths.items()})[0]


def _outcome(
    problem: Problem,
    options: OwsOptions,
    net: Network,
    drawn: Any,
    run: Run,
    rows: Optional[List[Dict[str, Any]]] = None,
) -> Outcome:
    """The network of the best widths, with the slimmable network's weights and statistics of its own."""
    levels = options.grid(problem.net.widths, problem.budget.round_to)
    gains = options.gains(drawn, levels, options.n_steps(problem.data.train.n_batches(problem.batch)))
    limit, found = problem.budget.target * problem.budget.original, {}

    def small(cost: Cost) -> Network:
        solution = Solver(levels, cost).solve(gains, limit)
        own = narrow(net, solution.widths)
        found[frozenset(own.widths.items())] = solution
        return own

    own, timings = solve_to_measured_budget(problem.budget, limit, small)
    own, n_statistics = with_new_statistics(problem, own)
    solution = found[frozenset(own.widths.items())]
    row: Dict[str, Any] = {
        "cost_kept": solution.cost / problem.budget.original,
        "gain": solution.value,
        "gap": solution.gap,
        "widths": solution.widths,
        **({"timings": timings} if timings else {}),
    }
    run.log("solved", **row)
    n = options.n_images(len(problem.data.train), problem.batch)
    images = {"slimmable": n, "statistics": n_statistics}
    return Outcome(own, {purpose: n for purpose, n in images.items() if n}, [*(rows or []), row])

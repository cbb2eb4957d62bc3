"""Architecture search: widths, blocks, kernels and depth within budgets, judged by training, a supernet or neither.

Follows "Optimizing neural networks for special-purpose hardware" (Amazon Science, 2023): a search space that suits the
device, a predicted cost, a quality and a solver. In a pipeline of qualities a cheap one comes first, and expensive ones
judge only what it leaves.
"""

from __future__ import annotations

import time
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Callable, ClassVar, Dict, Iterator, List, Literal, Optional, Set, Tuple

import numpy as np
from pydantic import Field, field_validator

from gcp.cost.base import COSTS, Budget
from gcp.cost.measured import MAX_CORRECTIONS, MEASUREMENT_TOLERANCE
from gcp.errors import UserError
from gcp.graph.network import Network
from gcp.graph.surgery import redrawn, resized, shrink
from gcp.methods.base import METHODS, MethodOptions, Outcome, Problem, Run, with_new_statistics
from gcp.methods.criteria import CRITERIA
from gcp.methods.select import highest
from gcp.options import Options, listed
from gcp.search import patterns
from gcp.search.candidates import Judged, TrainingOptions
from gcp.search.exploration import (
    SOLVERS,
    EvolutionOptions,
    ExactOptions,
    Limit,
    PopulationOptions,
    Question,
    RandomOptions,
    check,
)
from gcp.search.quality import QUALITIES, SupernetOptions
from gcp.search.space import Levels, Space, SpaceOptions
from gcp.seeds import Stream
from gcp.storage import read_json, write_json

SHOWN = 5  # best architectures that a record keeps
TIMED = 3  # at most this many times as many architectures are timed as will be trained, before the aim is corrected
KB = 1024
Size = Annotated[int, Field(ge=1, le=10**7)]


class LimitOptions(Options):
    """A budget in addition to the target: an upper bound on the sum of some costs."""

    costs: Tuple[Literal["macs", "params", "memory"], ...] = Field(
        description="the costs that are added up: macs, params, memory (of activations)"
    )
    at_most: float = Field(
        gt=0,
        le=1e15,
        description="largest sum allowed: in multiply-accumulates, or in units of 1,024 bytes for params and memory",
    )
    bytes_per_value: int = Field(4, ge=1, le=8, description="bytes of a parameter or an activation; 1 for int8")

    _lists = field_validator("costs", mode="before")(listed)

    def mistakes(self) -> Iterator[str]:
        """See `Options`."""
        if not self.costs or len(set(self.costs)) < len(self.costs):
            yield f"costs: {list(self.costs)} should be one or more costs, without duplicates"
        if "macs" in self.costs and len(self.costs) > 1:
            yield f"costs: {list(self.costs)}: multiply-accumulates and bytes cannot be added together"

    @property
    def name(self) -> str:
        """The name of the limit in messages."""
        unit = "" if "macs" in self.costs else " kB"
        return f"{' + '.join(self.costs)} <= {self.at_most:g}{unit}"

    def unit(self, cost: str) -> float:
        """The factor that converts a cost to the unit of the limit; memory already counts bytes of float32 values."""
        return {"macs": 1.0, "params": self.bytes_per_value / KB, "memory": self.bytes_per_value / 4 / KB}[cost]


class ArchitectureOptions(MethodOptions):
    """The search space, what architectures are judged by, and how good ones are found."""

    UNCOUNTED: ClassVar[Set[str]] = {"jobs"}

    space: SpaceOptions = Field(SpaceOptions(), description="what the search can decide")
    quality: Tuple[Literal[tuple(QUALITIES)], ...] = Field(
        ("trained",),
        description="what architectures are judged by; if several, each judges what the one before it leaves",
    )
    solver: Literal[tuple(SOLVERS)] = Field(
        "evolution", description="how the search finds architectures for the first quality to judge"
    )
    candidates: Tuple[Size, ...] = Field(
        (64,), description="for each quality, how many architectures it judges, such as [5000, 64, 8]"
    )
    limits: Tuple[LimitOptions, ...] = Field((), max_length=10, description="budgets in addition to the target")
    at_least: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="the fraction of the target's cost that architectures have to use; qualities without training can "
        "only rank networks of about the same cost",
    )
    training: TrainingOptions = Field(TrainingOptions(), description="training of the candidates, for quality trained")
    supernet: SupernetOptions = Field(SupernetOptions(), description="for quality supernet")
    evolution: EvolutionOptions = Field(EvolutionOptions(), description="for solver evolution")
    nsga2: PopulationOptions = Field(PopulationOptions(), description="for solver nsga2")
    exact: ExactOptions = Field(ExactOptions(), description="for solver exact")
    random: RandomOptions = Field(RandomOptions(), description="for solver random")
    jobs: int = Field(1, ge=1, le=1024, description="candidates trained at the same time, each with `threads` threads")

    _lists = field_validator("quality", "candidates", "limits", mode="before")(listed)

    def mistakes(self) -> Iterator[str]:
        """See `Options`."""
        if not self.quality or len(self.candidates) != len(self.quality):
            yield f"candidates: {list(self.candidates)} should be one number per entry of quality: {list(self.quality)}"
        if any(b > a for a, b in zip(self.candidates, self.candidates[1:])):
            yield f"candidates: {list(self.candidates)} must not increase"

    def label(self, cost: str) -> str:
        """The method's name; a pattern that is only trained does not count as a search."""
        return "Pattern" if self.space.start_from is not None and "*" in self.space.freeze else "Architecture search"

    def variant(self) -> Dict[str, str]:
        """What is decided, in words such as "widths + blocks + depth", the qualities that judge it, and the solver."""
        of = self.space
        declared = {
            "multiplier": of.multipliers,
            "widths": of.widths,
            "blocks": of.blocks,
            "kernels": of.kernels,
            "depth": of.drop,
        }
        words = " + ".join(word for word, values in declared.items() if values)
        return {"space": words or "a pattern's", "quality": " then ".join(self.quality), "solver": self.solver}

    def own(self, name: str) -> Options:
        """The options of a quality."""
        return {"trained": self.training, "supernet": self.supernet}.get(name, Options())

    def n_images(self, n_train: int, batch: int, n_renewed: int = 0) -> int:
        """Images used to train all candidates, and to train and evaluate the supernet."""
        per_epoch, n = -(-n_train // batch), n_renewed
        for name, candidates in zip(self.quality, self.candidates):
            if name in ("trained", "supernet"):
                steps = self.own(name).n_steps(per_epoch) * batch
                n += steps * candidates if name == "trained" else steps + candidates * self.supernet.images
        return n

    def check(self, net: Network, budget: Budget) -> None:
        """See `MethodOptions`: every name must exist in the network, and each budget must be within reach."""
        space = space_of(net, self.space, budget.round_to)
        if space.decisions:
            check(space, limits_of(space, self, budget))


def space_of(net: Network, options: SpaceOptions, round_to: int) -> Space:
    """The search space that a configuration defines for a network.

    UserError: there is nothing to decide, or the pattern to start from belongs to another network.
    """
    start = None
    declared = (options.multipliers, options.widths, options.blocks, options.kernels, options.drop)
    if not any(declared) and options.start_from is None:
        fix = "give two or more values for multipliers, widths, blocks, kernels or drop, or a pattern for start_from"
        raise UserError(f"prune.architecture.space: there is nothing to decide; {fix}", "space.empty")
    if options.start_from is not None:
        found = patterns.read(Path(options.start_from))
        if (found.network, tuple(found.input)) != (net.name, tuple(net.input_shape)):
            this = f"'{net.name}' with input {'x'.join(map(str, net.input_shape))}"
            wrong = f"is a pattern of '{found.network}' with input {'x'.join(map(str, found.input))}, not of {this}"
            raise UserError(f"{options.start_from}: {wrong}; transfer it first (search.py transfer)", "pattern.other")
        start = found.decisions
    return Space(net, options, round_to, start)


def limits_of(
    space: Space, options: ArchitectureOptions, budget: Budget, target: Optional[float] = None
) -> List[Limit]:
    """The target and all other budgets as limits, priced for a space; `target` replaces the budget's own."""
    target = budget.target if target is None else target
    priced = lru_cache(maxsize=None)(lambda name: space.price(lambda net: COSTS[name](net, None)))
    own = (f"target {target:g}", (_price(space, budget),), target * budget.original, (1.0,))
    found = [Limit(*own, options.at_least)]
    for limit in options.limits:
        units = tuple(limit.unit(name) for name in limit.costs)
        found.append(Limit(limit.name, tuple(map(priced, limit.costs)), limit.at_most, units))
    return found


def _price(space: Space, budget: Budget):
    return space.price(budget.cost_of)


@METHODS.register("architecture", ArchitectureOptions)
def architecture(problem: Problem, options: ArchitectureOptions, run: Run) -> Outcome:
    """Search the space and return the best architecture within all budgets.

    It inherits the trained network's weights as far as they fit; `finetune.from_scratch` draws new ones.
    """
    space = space_of(problem.net, options.space, problem.budget.round_to)
    judged = judged_by(space, problem, options, run)
    if space.decisions:
        limits = limits_of(space, options, problem.budget)
        clock = Clock(space, problem.budget, run.path / "timings.json")
        rows, ranked, scores = searched(judged, options, limits, run, clock)
        level = clock.first(ranked[:SHOWN])
        decisions = space.pattern(level)
        found = {"quality": list(options.quality), "images": dict(judged.images)}
        best = []
        for each, score in zip(ranked[:SHOWN], scores):
            other = patterns.of(space, space.pattern(each), {**found, "score": score})
            best.append({"decisions": other.decisions, "score": score})
            patterns.write(run.path / f"pattern-{len(best)}.yaml", other)
        row: Dict[str, Any] = {"budgets": {limit.name: float(limit(level[None])[0]) for limit in limits}, "best": best}
        row.update({"timings": list(clock.rows.values())} if clock.rows else {})
    else:
        rows, row, decisions, found = [], {}, space.fixed, None
    pattern = patterns.of(space, decisions, found)
    patterns.write(run.path / "pattern.yaml", pattern)
    net, n_statistics = with_new_statistics(problem, inherited(problem, space, decisions))
    row = {"decisions": pattern.decisions, "cost_kept": problem.budget.of(net) / problem.budget.original, **row}
    run.log("searched", **row)
    images = {**judged.images, "statistics": n_statistics}
    return Outcome(net, {purpose: int(n) for purpose, n in images.items() if n}, [*rows, row])


def judged_by(space: Space, problem: Problem, options: ArchitectureOptions, run: Run) -> Judged:
    """What qualities need to judge architectures: the space, the data and the training setup."""
    how = problem.data, problem.task, problem.seed, problem.batch, problem.augment
    return Judged(space, *how, run.shared, options.jobs, run.log)


def searched(
    judged: Judged, options: ArchitectureOptions, limits: List[Limit], run: Run, clock: Clock
) -> Tuple[List[Dict[str, Any]], Levels, List[float]]:
    """A row for each quality, and the architectures that the last one judged, best first, with their scores.

    If the target applies to a measured cost, the last of several qualities judges architectures whose measured cost
    meets it. UserError: no architecture could be trained.
    """
    from gcp import runtime

    rng = np.random.default_rng(Stream.ARCHITECTURES.seed(judged.seed, 5))
    rows, ranked, scores = [], None, []
    for name, n in zip(options.quality, options.candidates):
        began, before = time.monotonic(), judged.images.copy()
        with runtime.progress_bar(f"architectures by {name}", "net") as progress:
            score = QUALITIES[name](judged, options.own(name))
            question = Question(judged.space, score, tuple(limits), n, rng, progress)
            if ranked is not None:
                question.scores(ranked[:n])
                ranked = question.ranked(question.asked)
            else:

                def solved(aim: float) -> Levels:
                    """Ask the same question with another limit on the target's cost; known scores are kept."""
                    question.limits = (replace(limits[0], most=aim), *limits[1:])
                    question.n = len(question.asked) + n
                    found = SOLVERS[options.solver](question, getattr(options, options.solver))
                    return found[question.excess(found) == 0]

                ranked = solved(limits[0].most)
            if len(rows) + 2 == len(options.quality) and clock.ticks:
                again = solved if not rows and QUALITIES[name].is_cheap else None  # others would take more images
                ranked = clock.keeping(ranked, options.candidates[-1], again)
        if not len(ranked):
            raise UserError(
                f"architecture.quality: {name}: no architecture could be trained; lower architecture.training.lr",
                "architecture.diverged",
            )
        scores = question.scores(ranked).tolist()
        taken = {key: int(m) for key, m in (judged.images - before).items()}
        facts = {"asked": len(question.asked), "best": scores[0], "images_by_purpose": taken, **question.facts}
        rows.append({"quality": name, "seconds": round(time.monotonic() - began, 3), **facts})
        run.log("quality", **rows[-1])
    return rows, ranked, scores


class Clock:
    """Measured costs of a space's architectures, each timed once.

    They are kept in a file, so that a resumed run makes the same decisions. `rows` hold the limit, the predicted and
    the measured cost, as fractions of the network's own cost.
    """

    def __init__(self, space: Space, budget: Budget, path: Path) -> None:
        self._space, self._budget, self._path = space, budget, path
        self._limit = budget.target * budget.original
        self.rows: Dict[str, Dict[str, float]] = read_json(path, Dict[str, Dict[str, float]]) if path.exists() else {}

    @property
    def ticks(self) -> bool:
        """Whether the cost can be measured at all."""
        return self._budget.measure is not None

    def __call__(self, level: np.ndarray) -> float:
        """The measured cost of an architecture divided by the limit."""
        name = " ".join(map(str, level))
        if name not in self.rows:
            net = self._space.network(self._space.pattern(level))
            measured, _ = self._budget.measure(net, self._limit)
            costs = {"aim": self._limit, "predicted": self._budget.of(net), "measured": measured}
            self.rows[name] = {key: value / self._budget.original for key, value in costs.items()}
            write_json(self._path, self.rows)
        return self.rows[name]["measured"] / self._budget.target

    def keeping(self, ranked: Levels, n: int, solved: Optional[Callable[[float], Levels]]) -> Levels:
        """The first n architectures of a ranking whose measured cost meets the limit.

        If there are too few, `solved(aim)` gives another ranking, for a limit corrected by how far the measured
        architectures exceeded it. If there are still too few, those nearest to the limit follow.
        """
        aim, kept, over = self._limit, {}, {}
        for _ in range(MAX_CORRECTIONS + 1):
            found = []
            for level in ranked[: TIMED * n]:
                found.append(self(level))
                (kept if found[-1] <= 1 + MEASUREMENT_TOLERANCE else over)[tuple(level.tolist())] = found[-1]
                if len(kept) == n:
                    return np.array(list(kept))
            if solved is None or not found:
                break
            aim *= min(1 / float(np.median(found)), 1 - MEASUREMENT_TOLERANCE)
            try:
                ranked = solved(aim)
            except UserError:  # nothing meets the corrected aim
                break
        return np.array([*kept, *sorted(over, key=over.__getitem__)][:n])

    def first(self, ranked: Levels) -> np.ndarray:
        """The first architecture of a ranking whose measured cost meets the limit; if none does, the nearest to it."""
        return self.keeping(ranked, 1, None)[0] if self.ticks else ranked[0]


def inherited(problem: Problem, space: Space, decisions: Dict[str, Any]) -> Network:
    """The architecture with weights inherited from the problem's network.

    Blocks are rewritten with their weights, and each group keeps its channels of largest L1 norm. If any group becomes
    wider than it was, all weights are new.
    """
    net, widths, own = space.rewritten(decisions), space.widths(decisions), space.group_of(space.rewritten(decisions))
    wanted = {group: widths[own[group]] for group in net.widths}
    if wanted == net.widths:
        return net
    if any(wanted[group] > n for group, n in net.widths.items()):
        return redrawn(resized(net, wanted), Stream.SCRATCH.seed(problem.seed))
    return shrink(net, highest(CRITERIA["l1"](replace(problem, net=net)), wanted), problem.moved)

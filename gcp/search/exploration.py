"""Solvers, which find good architectures within budgets: exactly if quality is additive, by evolution, or at random.

All answer the same question and are compared by the number of architectures that they have evaluated. Repeating an
evaluation costs nothing, so a search that is restarted after a kill ends with the same result.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any, Callable, Dict, Iterable, List, Optional, Sequence, Tuple

import numpy as np
from pydantic import Field

from gcp.cost.base import Cost, Term
from gcp.errors import UserError
from gcp.options import Options
from gcp.registry import Registry
from gcp.search.quality import Scores, additive
from gcp.search.solvers import Solver
from gcp.search.space import Levels, Priced, Space

CHUNK = 1024  # architectures that are drawn at once
MOST_DRAWN = 400  # chunks, before budgets are reported as unattainable
SPREAD = 0.3  # of a random architecture's levels about their mean: standard deviation, as a fraction of the range


@dataclass(frozen=True)
class Limit:
    """A budget: the sum of some costs must be at most `most`, and at least the fraction `least` of that.

    `name` is what messages call it.
    """

    name: str
    costs: Tuple[Priced, ...]
    most: float
    units: Tuple[float, ...]  # the factor of each cost in the sum
    least: float = 0.0

    def __call__(self, levels: Levels) -> np.ndarray:
        """The cost of each architecture divided by the limit, shape (architectures,): at most 1 if the limit is met."""
        return sum(unit * cost(levels) for unit, cost in zip(self.units, self.costs)) / self.most


@dataclass
class Question:
    """A solver's task: find the best architectures of a space by `score`, within all limits, with `n` evaluations.

    `asked` keeps every score, in the order of evaluation, by levels in the form of `Space.canonical`; `facts` is what a
    solver reports about itself.
    """

    space: Space
    score: Scores
    limits: Tuple[Limit, ...]
    n: int
    rng: np.random.Generator
    progress: Callable[[int, int], None] = lambda done, n: None
    asked: Dict[Tuple[int, ...], float] = field(default_factory=dict)
    facts: Dict[str, Any] = field(default_factory=dict)

    def scores(self, levels: Levels) -> np.ndarray:
        """The score of each architecture, shape (architectures,); only new ones are evaluated."""
        keys = _keys(levels)
        new = list(dict.fromkeys(key for key in keys if key not in self.asked))
        if new:
            self.asked.update(zip(new, map(float, self.score(np.array(new)))))
            self.progress(min(len(self.asked), self.n), self.n)
        return np.array([self.asked[key] for key in keys])

    def affordable(self, levels: Levels, wanted: np.ndarray) -> np.ndarray:
        """Which of the `wanted` architectures can be evaluated, first ones first, with no more than `n` in all."""
        keys, left = _keys(levels), self.n - len(self.asked)
        new = list(dict.fromkeys(key for key, is_wanted in zip(keys, wanted) if is_wanted and key not in self.asked))
        known = self.asked.keys() | set(new[: max(0, left)])
        return np.array([key in known for key in keys])

    def excess(self, levels: Levels) -> np.ndarray:
        """By how much each architecture misses its worst limit, as a fraction of the limit; 0 where all are met."""
        over = np.zeros(len(levels))
        for limit in self.limits:
            used = limit(levels)
            over = np.maximum(over, np.maximum(used - 1, limit.least - used))
        return np.where(over <= 1e-9, 0.0, over)

    def feasible(self, n: int) -> Levels:
        """Distinct random architectures within all limits: n, or as many as are found. UserError: none is found."""
        found: Dict[Tuple[int, ...], None] = {}
        nearest = np.inf, None
        for _ in range(MOST_DRAWN):
            drawn = self.space.canonical(spread(self.space, CHUNK, self.rng))
            excess = self.excess(drawn)
            k = int(excess.argmin())
            if excess[k] < nearest[0]:
                nearest = float(excess[k]), drawn[k]
            found.update(dict.fromkeys(_keys(drawn[excess == 0])))
            if len(found) >= n:
                break
        if not found:
            raise self._unmet(nearest[1])
        return np.array(list(found)[:n])

    def _unmet(self, nearest: np.ndarray) -> UserError:
        at = {limit.name: float(limit(nearest[None])[0]) for limit in self.limits}
        short = {limit.name: limit.least - at[limit.name] for limit in self.limits}
        worst = max(at, key=lambda name: max(at[name] - 1, short[name]))
        if short[worst] > at[worst] - 1:
            wrong = f"no architecture in the space uses enough of {worst}; the closest uses {at[worst]:.3f} of it"
            return UserError(f"{wrong}; lower architecture.at_least", "space.budget")
        wrong = (
            f"no architecture in the space meets all budgets; the closest takes {at[worst]:.3f} times what "
            f"{worst} allows"
        )
        return UserError(f"{wrong}; raise that budget, or add cheaper choices to the space", "space.budget")

    def ranked(self, levels: Iterable[Tuple[int, ...]]) -> Levels:
        """The architectures, best first, without those whose score is not finite."""
        known = sorted((key for key in levels if np.isfinite(self.asked[key])), key=lambda key: -self.asked[key])
        return np.array(known).reshape(-1, len(self.space.sizes))


def _keys(levels: Levels) -> List[Tuple[int, ...]]:
    """Each architecture as a key of a mapping."""
    return list(map(tuple, np.asarray(levels, int).tolist()))


def spread(space: Space, n: int, rng: np.random.Generator) -> Levels:
    """Random architectures: half with all levels equally likely, half with levels around a random mean.

    With many decisions, those of the first half all cost about the same; the second half has cheap and expensive ones.
    """
    middle, last = rng.random((n, 1)), space.sizes - 1
    near = np.clip(middle + rng.normal(0, SPREAD, (n, len(last))), 0, 1)
    is_ordered = np.array([not isinstance(of[0], (bool, str)) for of in space.decisions.values()])
    levels = space.random(n, rng)
    return np.where((np.arange(n) % 2 == 1)[:, None] & is_ordered, np.rint(near * last).astype(int), levels)


Solved = Callable[[Question, Any], Levels]
SOLVERS: Registry[Solved] = Registry("solver")


class RandomOptions(Options):
    """Random search has no options."""


@SOLVERS.register("random", RandomOptions, label="Random search")
def at_random(question: Question, options: RandomOptions) -> Levels:
    """Random architectures within the limits: the baseline for every search."""
    levels = question.feasible(question.n)
    question.scores(levels)
    return question.ranked(question.asked)


class PopulationOptions(Options):
    """The size of the population: all that NSGA-II needs, and a part of what evolution does."""

    population: int = Field(32, ge=2, le=10**5, description="architectures in the population")


class EvolutionOptions(PopulationOptions):
    """How evolution proceeds."""

    tournament: int = Field(8, ge=1, le=10**5, description="architectures drawn at random; the best becomes a parent")
    brood: int = Field(4, ge=1, le=10**4, description="children that are made, and evaluated, at once")


@SOLVERS.register("evolution", EvolutionOptions, label="Evolution")
def evolution(question: Question, options: EvolutionOptions) -> Levels:
    """Ageing evolution (Real et al., "Regularized evolution for image classifier architecture search", AAAI 2019).

    A child is its parent with as few decisions changed as it takes to be new and within the limits; the oldest are
    removed.
    """
    rng = question.rng
    alive = deque(map(tuple, question.feasible(min(options.population, question.n)).tolist()), options.population)
    question.scores(np.array(alive))
    while len(question.asked) < question.n:
        children: Dict[Tuple[int, ...], None] = {}
        for _ in range(min(options.brood, question.n - len(question.asked))):
            drawn = [alive[k] for k in rng.integers(0, len(alive), options.tournament)]
            child = _changed(question, max(drawn, key=question.asked.__getitem__), children)
            if child is not None:
                children[child] = None
        if not children:
            break  # nothing new can be found nearby
        question.scores(np.array(list(children)))
        alive.extend(children)
    return question.ranked(question.asked)


def _changed(question: Question, parent: Tuple[int, ...], taken: Dict[Tuple[int, ...], None]) -> Optional[tuple]:
    """A new architecture within the limits that differs from the parent in as few decisions as can be found."""
    sizes = question.space.sizes
    for n_changes in (1, 1, 2, 3, 4):
        children = np.tile(parent, (CHUNK // 8, 1))
        for row in children:
            for k in question.rng.choice(len(sizes), min(n_changes, len(sizes)), replace=False):
                row[k] = (row[k] + 1 + question.rng.integers(0, sizes[k] - 1)) % sizes[k]
        children = question.space.canonical(children)
        for child, excess in zip(children.tolist(), question.excess(children)):
            child = tuple(child)
            if excess == 0 and child not in question.asked and child not in taken:
                return child
    return None


@SOLVERS.register("nsga2", PopulationOptions, label="NSGA-II")
def nsga2(question: Question, options: PopulationOptions) -> Levels:
    """The Pareto front of quality and every limited cost, by NSGA-II (Deb et al. 2002) as implemented in pymoo.

    All evaluated architectures are returned, those on the front first. UserError: pymoo is not installed.
    """
    try:
        from pymoo.algorithms.moo.nsga2 import NSGA2
        from pymoo.core.problem import Problem
        from pymoo.operators.crossover.sbx import SBX
        from pymoo.operators.mutation.pm import PM
        from pymoo.operators.repair.rounding import RoundingRepair
        from pymoo.optimize import minimize
    except ImportError:
        raise UserError("solver: nsga2 needs pymoo; install it: pip install '.[pareto]'", "solver.pymoo") from None
    space = question.space

    class Asked(Problem):
        def _evaluate(self, x: np.ndarray, out: dict, *args: Any, **kwargs: Any) -> None:
            levels = space.canonical(np.clip(np.rint(x), 0, space.sizes - 1).astype(int))
            over = np.stack([limit(levels) for limit in question.limits], 1)
            meets, scores = question.excess(levels) == 0, np.full(len(levels), -np.inf)
            meets &= question.affordable(levels, meets)
            if meets.any():
                scores[meets] = question.scores(levels[meets])
            lost = np.where(np.isfinite(scores), -scores, 1e30)
            out["F"], out["G"] = np.column_stack([lost, over]), over - 1

    population = min(options.population, question.n)
    start = question.feasible(population)
    problem = Asked(len(space.sizes), 1 + len(question.limits), len(question.limits), xl=0, xu=space.sizes - 1)
    whole = {"vtype": float, "repair": RoundingRepair()}
    how = NSGA2(population, sampling=start, crossover=SBX(**whole), mutation=PM(**whole))
    generations = -(-question.n // population)
    found = minimize(problem, how, ("n_gen", generations), seed=int(question.rng.integers(2**31)))
    front = space.canonical(np.rint(np.atleast_2d(found.X)).astype(int)) if found.X is not None else start[:0]
    question.facts["front"] = len(front)
    first = question.ranked(dict.fromkeys(_keys(front)))
    rest = question.ranked(key for key in question.asked if key not in set(map(tuple, first.tolist())))
    return np.concatenate([first, rest])


class ExactOptions(Options):
    """How many exact solutions are computed."""

    solutions: int = Field(
        8, ge=1, le=1000, description="exact solutions, each at a different limit between 90 and 100 % of the budget"
    )


@SOLVERS.register("exact", ExactOptions, label="Exact elimination")
def exact(question: Question, options: ExactOptions) -> Levels:
    """The architectures with the largest sum of gains of decisions, fitted to the scores of random architectures.

    Elimination takes one limit on a sum; limits on maxima exclude choices. UserError: there are two limits on sums, or
    one on a sum of a maximum and another cost, which elimination cannot handle.
    """
    sums = [limit for limit in question.limits if all(cost.is_sum for cost in limit.costs)]
    mixed = [limit for limit in question.limits if not limit.costs[0].is_sum and len(limit.costs) > 1]
    if len(sums) > 1 or mixed:
        names = " and ".join(limit.name for limit in (mixed or sums))
        raise UserError(
            f"solver: exact supports only one budget that is a sum, not {names}; use evolution", "solver.limits"
        )
    n_random = max(2, question.n - options.solutions)  # a fit needs two
    levels = question.feasible(n_random)
    gains, fit = additive(question.space, levels, question.scores(levels))
    question.facts["r_squared"] = fit
    numbers = {name: range(len(values)) for name, values in question.space.decisions.items()}
    solver = Solver(numbers, _limited(question, sums))
    ends = {}
    for part in np.linspace(1, 0.9, min(options.solutions, max(0, question.n - n_random))):
        most = part * (sums[0].most if sums else 1.0)
        if most >= solver.lowest:
            solution = solver.solve(gains, most)
            ends[tuple(solution.widths[name] for name in question.space.names)] = None
            question.facts.setdefault("gap", solution.gap)
    if ends:
        solutions = np.unique(question.space.canonical(np.array(list(ends))), axis=0)
        solutions = solutions[question.excess(solutions) == 0]
        if len(solutions):  # all of them can be outside other limits, or use too little of the budget
            question.scores(solutions)
    return question.ranked(question.asked)


def _limited(question: Question, sums: Sequence[Limit]) -> Cost:
    """The summed cost as a function of level indices, infinite where a maximum exceeds its limit."""
    terms: List[Term] = []
    for limit in question.limits:
        for unit, cost in zip(limit.units, limit.costs):
            for scope, table in cost.tables.items():
                values = unit * table if limit in sums else np.where(unit * table > limit.most, np.inf, 0.0)
                terms.append(Term(scope, lambda *at, values=values: float(values[at])))
    return Cost(terms)


def check(space: Space, limits: Sequence[Limit]) -> None:
    """Raise a UserError, with the lowest possible cost, if even the cheapest architecture exceeds a budget."""
    numbers = {name: range(len(values)) for name, values in space.decisions.items()}
    for limit in limits:
        lowest = sum(unit * Solver(numbers, cost.cost()).lowest for unit, cost in zip(limit.units, limit.costs))
        if lowest > limit.most * (1 + 1e-9):
            wrong = f"{limit.name}: the cheapest architecture takes {lowest / limit.most:.3f} times what is allowed"
            raise UserError(f"{wrong}; raise the budget, or add cheaper choices to the space", "space.budget")

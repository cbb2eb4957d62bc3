"""Widths of largest value within a budget: exact minimisation of sums of local terms, with a bound if it stops early.

Each term depends on few groups. Because of residual ties, their graph is no chain, but it has small treewidth: a
stage's width meets the inner widths of its blocks one by one. So variable elimination (Bertele & Brioschi, "Nonserial
Dynamic Programming", 1972) is exact and fast; on a chain it is the Viterbi algorithm, as in Berman et al., "AOWS", CVPR
2020, section 3.3.

The budget becomes a Lagrange multiplier, whose best value leaves a duality gap: solutions between two corners of the
convex hull are optimal for no multiplier. Branch and bound finds them, with elimination's tables as bounds on every
partial choice.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import Callable, Dict, List, Mapping, Optional, Sequence, Tuple

import numpy as np
from scipy.special import logsumexp

from gcp.cost.base import Cost
from gcp.errors import UserError
from gcp.graph.network import Widths

MAX_ENTRIES = 2 * 10**7  # of the largest table of an elimination: 160 MB
MAX_NODES = 20_000  # partial choices that branch and bound between two multipliers may visit
ROUNDING = 1e-9  # the relative rounding error to allow for in sums of floats

Gains = Mapping[str, np.ndarray]  # for each group, a value for each of its levels
Factor = Tuple[Tuple[str, ...], np.ndarray]  # names of groups, and a value for every choice of their levels
Order = Tuple[List[str], Dict[str, Tuple[str, ...]]]  # of elimination: see `_min_fill`
Tables = Tuple[Dict[str, np.ndarray], float]  # see `_Eliminated.tables`


@dataclass(frozen=True)
class Solution:
    """Widths, their value and cost, and an upper `bound` on the value of any widths within the budget."""

    widths: Widths
    value: float
    cost: float
    bound: float

    @property
    def gap(self) -> float:
        """How much more widths within the budget could be worth, as a fraction of the bound; 0: these are optimal."""
        return (self.bound - self.value) / max(abs(self.bound), 1e-300)


def _tolerance(value: float) -> float:
    """The rounding error that a sum of floats near this value may have."""
    return ROUNDING * max(1.0, abs(value))


class Solver:
    """Finds widths among `levels` under a cost, whose terms are evaluated once for all gains and limits.

    UserError: the cost couples too many groups with one another for exact elimination.
    """

    def __init__(self, levels: Mapping[str, Sequence[int]], cost: Cost) -> None:
        self.levels, self.cost = levels, cost
        # Before any table is made, since a term of many groups has one that no memory can hold.
        self._order = _min_fill({name: len(of) for name, of in levels.items()}, [term.names for term in cost.terms])
        self._parts = _cost_factors(levels, cost)
        self._whole = _Eliminated(levels, self._parts, self._order)

    @property
    def lowest(self) -> float:
        """The lowest cost of any widths."""
        if self.cost.is_sum:
            return self._whole.tables({}, 1.0)[1]
        values = np.unique(np.concatenate([v.ravel() for _, v in self._parts]))
        low, high = 0, len(values) - 1
        while low < high:  # whatever is within a limit is within a higher one, so bisect the values
            middle = (low + high) // 2
            is_met = np.isfinite(self._within(values[middle]).tables({}, 1.0)[1])
            low, high = (low, middle) if is_met else (middle + 1, high)
        return float(values[low])

    def solve(self, gains: Gains, limit: float, max_nodes: int = MAX_NODES) -> Solution:
        """The widths of largest summed gain whose cost is at most `limit`.

        UserError: no widths cost that little, or a gain is not a finite number.
        """
        (losses, unit), problem = _losses(gains), self._problem(limit)
        choice, bound = _search(problem, losses, self._ceiling(limit), max_nodes)
        widths = {name: int(self.levels[name][k]) for name, k in choice.items()}
        value, loss = (sum(float(of[name][k]) for name, k in choice.items()) for of in (gains, losses))
        left = loss - bound if loss - bound > _tolerance(bound) else 0.0
        return Solution(widths, value, self.cost(widths), value + unit * left)

    def marginals(self, gains: Gains, limit: float, temperature: float) -> Dict[str, np.ndarray]:
        """Per group, each level's probability if widths are weighted by exp((gain - price * cost) / temperature).

        The price is the one at which the best widths meet the limit. Sums over all widths are computed by the same
        elimination as their minimum; on a chain, this is the forward-backward algorithm (AOWS, section 3.4). UserError:
        as in `solve`.
        """
        (losses, unit), problem = _losses(gains), self._problem(limit)
        price = _priced(problem, losses, self._ceiling(limit)).price if self.cost.is_sum else 1.0
        return problem.marginals(losses, price, temperature / unit)

    def front(self, gains: Gains, n: int) -> List[Solution]:
        """The widths of largest value at up to `n` limits, geometrically spaced from the lowest cost upwards.

        Widths that cost as much as others or more without being worth more are left out.
        """
        top = self.solve(gains, np.inf)
        limits = np.geomspace(self.lowest, max(top.cost, self.lowest), n)
        found: List[Solution] = []
        for solution in [*(self.solve(gains, limit) for limit in limits[:-1]), top]:
            if not found or solution.value > found[-1].value:
                while found and found[-1].cost >= solution.cost:
                    found.pop()
                found.append(solution)
        return found

    def _ceiling(self, limit: float) -> Optional[float]:
        return limit * (1 + ROUNDING) if self.cost.is_sum else None

    def _within(self, limit: float) -> _Eliminated:
        """The problem for a cost that is a maximum: terms above the limit become infinite."""
        parts = [(names, np.where(v > limit, np.inf, 0.0)) for names, v in self._parts]
        return _Eliminated(self.levels, parts, self._order)

    def _problem(self, limit: float) -> _Eliminated:
        problem = self._whole if self.cost.is_sum else self._within(limit * (1 + ROUNDING))
        _, lowest = problem.tables({}, 1.0)
        if lowest > (limit * (1 + ROUNDING) if self.cost.is_sum else 0.0):
            least = f"{self.lowest:.6g} remains with the cheapest widths"
            raise UserError(f"a cost of {limit:.6g} cannot be reached: {least}", "search.limit")
        return problem


def _losses(gains: Gains) -> Tuple[Dict[str, np.ndarray], float]:
    """Minus the gains, in units of the largest difference between two levels of a group; and this unit.

    So rounding errors are small compared with what decides, however small the gains are. UserError: a gain is not a
    finite number.
    """
    values = {name: np.asarray(of, np.float64) for name, of in gains.items()}
    wrong = next((name for name, of in values.items() if not np.isfinite(of).all()), None)
    if wrong is not None:
        raise UserError(
            f"'{wrong}': what its choices are worth is not a finite number; the network may have diverged, so lower "
            "its learning rate",
            "search.gains",
        )
    unit = max((float(np.ptp(of)) for of in values.values()), default=0.0) or 1.0
    return {name: -of / unit for name, of in values.items()}, unit


def _cost_factors(levels: Mapping[str, Sequence[int]], cost: Cost) -> List[Factor]:
    """The terms of a cost as tables over the levels of their groups; terms of the same groups are merged."""
    tables: Dict[Tuple[str, ...], np.ndarray] = {}
    for term in cost.terms:
        names = tuple(sorted(term.names))
        shape = tuple(len(levels[name]) for name in names)
        table = np.empty(shape)
        for at in np.ndindex(*shape):
            chosen = dict(zip(names, at))
            table[at] = term.value(*[int(levels[name][chosen[name]]) for name in term.names])
        if names in tables:
            table = tables[names] + table if cost.is_sum else np.maximum(tables[names], table)
        tables[names] = table
    return list(tables.items())


class _Eliminated:
    """An elimination order for a cost's graph, and the tables that elimination makes: `tables(unary, weight)`.

    `unary[name]`: a value per level. A variable's table is over its own levels and those of its neighbours that are
    eliminated later: the least sum of all terms that depend on it or on what was eliminated into it.
    """

    def __init__(self, levels: Mapping[str, Sequence[int]], parts: Sequence[Factor], order: Order) -> None:
        self.sizes = {name: len(of) for name, of in levels.items()}
        self.parts = parts
        self.order, self.later = order

    def tables(
        self,
        unary: Mapping[str, np.ndarray],
        weight: float,
        join: Callable[[np.ndarray], np.ndarray] = lambda table: table.min(axis=0),
    ) -> Tables:
        """A table per variable, with axes (itself, *later), and the least sum of all terms.

        `weight` multiplies the cost; 0 ignores it where it is finite. `join` reduces a table over its variable's
        levels, by default to their minimum.
        """
        waiting: List[Factor] = [(names, _weighted(values, weight)) for names, values in self.parts]
        waiting += [((name,), values) for name, values in unary.items()]
        found = {}
        for name in self.order:
            scope = (name, *self.later[name])
            own = [factor for factor in waiting if name in factor[0]]
            waiting = [factor for factor in waiting if name not in factor[0]]
            table = np.zeros([self.sizes[each] for each in scope])
            for names, values in own:
                table += _spread(values, names, scope)
            found[name] = table
            waiting.append((scope[1:], join(table)))
        return found, sum(float(values) for _, values in waiting)

    def choice(self, tables: Tables) -> Dict[str, int]:
        """The levels with the least sum, by variable."""
        chosen: Dict[str, int] = {}
        for name in reversed(self.order):
            chosen[name] = int(np.argmin(self.row(tables, name, chosen)))
        return chosen

    def marginals(self, unary: Mapping[str, np.ndarray], weight: float, temperature: float) -> Dict[str, np.ndarray]:
        """Per variable, the probability of each level if choices are weighted by exp(-sum / temperature).

        The elimination's tables give the distribution of each variable given its later neighbours; going backwards from
        the last variable, the distribution of these is known.
        """

        def join(table: np.ndarray) -> np.ndarray:
            return -temperature * logsumexp(-table / temperature, axis=0)

        tables, _ = self.tables(unary, weight, join)
        of_scope: Dict[str, np.ndarray] = {}  # joint probabilities of (itself, *later)
        found = {}
        for name in reversed(self.order):
            given = join(tables[name])
            with np.errstate(invalid="ignore"):  # where no level is possible, the condition is impossible as well
                own = np.where(np.isfinite(given), np.exp((given - tables[name]) / temperature), 0.0)
            of_scope[name] = own * self._of_later(name, of_scope)
            found[name] = of_scope[name].sum(axis=tuple(range(1, own.ndim)))
        return {name: found[name] / found[name].sum() for name in self.sizes}

    def _of_later(self, name: str, of_scope: Mapping[str, np.ndarray]) -> np.ndarray:
        """Joint probabilities of a variable's later neighbours: the first of them is a neighbour of all others."""
        later = self.later[name]
        if not later:
            return np.ones(())
        first = min(later, key=self.order.index)
        scope = (first, *self.later[first])
        joint = of_scope[first].sum(axis=tuple(k for k, each in enumerate(scope) if each not in later))
        left = [each for each in scope if each in later]
        return np.transpose(joint, [left.index(each) for each in later])

    def row(self, tables: Tables, name: str, chosen: Mapping[str, int]) -> np.ndarray:
        """A variable's table where the levels of later variables are chosen: a value per level."""
        return tables[0][name][(slice(None), *(chosen[each] for each in self.later[name]))]

    def total(self, unary: Mapping[str, np.ndarray], chosen: Mapping[str, int], weight: float) -> float:
        """The sum of all terms at a choice."""
        cost = sum(float(values[tuple(chosen[name] for name in names)]) for names, values in self.parts)
        return sum(float(values[chosen[name]]) for name, values in unary.items()) + (weight * cost if weight else 0.0)


def _weighted(values: np.ndarray, weight: float) -> np.ndarray:
    """The values times the weight; what is impossible stays infinite."""
    return np.multiply(values, weight, out=np.full(values.shape, np.inf), where=np.isfinite(values))


def _spread(values: np.ndarray, names: Sequence[str], scope: Sequence[str]) -> np.ndarray:
    """Values over `names`, reshaped so that they broadcast over `scope`."""
    axes = [names.index(name) for name in scope if name in names]
    shape = [values.shape[names.index(name)] if name in names else 1 for name in scope]
    return np.transpose(values, axes).reshape(shape)


def _min_fill(sizes: Mapping[str, int], scopes: Sequence[Tuple[str, ...]]) -> Order:
    """A min-fill elimination order: next is the variable that adds the fewest edges, then that with the smallest table.

    Also returns, per variable, its neighbours among the later ones. UserError: a table would be too large.
    """
    near: Dict[str, set] = {name: set() for name in sizes}
    for names in scopes:
        for a, b in combinations(names, 2):
            near[a].add(b)
            near[b].add(a)
    order, later, left = [], {}, dict.fromkeys(sizes)

    def price(name: str) -> Tuple[int, float, int]:
        fill = sum(b not in near[a] for a, b in combinations(sorted(near[name]), 2))
        with np.errstate(over="ignore"):  # infinitely many entries are too many
            return fill, np.prod([sizes[each] for each in (name, *near[name])], dtype=float), positions[name]

    positions = {name: i for i, name in enumerate(sizes)}
    while left:
        name = min(left, key=price)
        if price(name)[1] > MAX_ENTRIES:
            many = f"the widths of {', '.join([name, *sorted(near[name])][:4])} and others jointly determine a cost"
            raise UserError(f"{many}: too many for an exact solution; use fewer levels per group", "search.width")
        order.append(name)
        later[name] = tuple(sorted(near[name], key=positions.__getitem__))
        for a, b in combinations(later[name], 2):
            near[a].add(b)
            near[b].add(a)
        for each in near.pop(name):
            near[each].discard(name)
        del left[name]
    return order, later


@dataclass(frozen=True)
class _Priced:
    """The multiplier that maximises the dual, a choice within the limit, and tables of the priced sum and the cost."""

    price: float
    choice: Dict[str, int]
    tables: Tables
    of_cost: Tables


def _priced(problem: _Eliminated, losses: Mapping[str, np.ndarray], limit: Optional[float]) -> _Priced:
    """Maximise the dual by secants between a choice that is too expensive and one that is not.

    Each of the two is a corner of the convex hull, so there are few steps. The multiplier is 0 if the best of all
    choices is within the limit, or if there is no limit.
    """
    tables, cheap_tables = problem.tables(losses, 0.0), problem.tables({}, 1.0)
    dear = problem.choice(tables)
    dear_at = problem.total(losses, dear, 0.0), problem.total({}, dear, 1.0)
    if limit is None or dear_at[1] <= limit:
        return _Priced(0.0, dear, tables, cheap_tables)
    cheap = problem.choice(cheap_tables)
    cheap_at = problem.total(losses, cheap, 0.0), problem.total({}, cheap, 1.0)
    while True:
        price = (cheap_at[0] - dear_at[0]) / (dear_at[1] - cheap_at[1])
        tables = problem.tables(losses, price)
        on_line = dear_at[0] + price * dear_at[1]
        if tables[1] >= on_line - _tolerance(on_line):
            break
        choice = problem.choice(tables)
        at = problem.total(losses, choice, 0.0), problem.total({}, choice, 1.0)
        if at[1] <= limit:
            cheap, cheap_at = choice, at
        else:
            dear, dear_at = choice, at
    return _Priced(price, cheap, tables, cheap_tables)


def _search(
    problem: _Eliminated, losses: Mapping[str, np.ndarray], limit: Optional[float], max_nodes: int
) -> Tuple[Dict[str, int], float]:
    """The choice of least loss within the limit, if there is a limit, and a lower bound on its loss.

    It starts from the choice at the best multiplier and then searches, depth first, those that no multiplier gives: for
    a partial choice, the tables give the least loss plus priced cost, and the least cost, of any completion.
    """
    at = _priced(problem, losses, limit)
    if at.price == 0:
        return at.choice, problem.total(losses, at.choice, 0.0)
    start = _filled(problem, losses, at.choice, limit)
    return _between(problem, at.tables, at.of_cost, losses, at.price, limit, start, max_nodes)


def _filled(
    problem: _Eliminated, losses: Mapping[str, np.ndarray], choice: Dict[str, int], limit: float
) -> Tuple[Dict[str, int], float]:
    """A choice within the limit, improved one group at a time for as long as possible, and its loss."""
    choice = dict(choice)
    of = {name: [part for part in problem.parts if name in part[0]] for name in problem.sizes}

    def costs(name: str) -> np.ndarray:
        """What the terms of a group cost at each of its levels."""
        total = np.zeros(problem.sizes[name])
        for names, values in of[name]:
            total += values[tuple(slice(None) if each == name else choice[each] for each in names)]
        return total

    spent = problem.total({}, choice, 1.0)
    while True:
        best: Optional[Tuple[float, str, int, float]] = None
        for name in problem.sizes:
            own = costs(name)
            after = spent - own[choice[name]] + own
            gain = np.where(after <= limit, losses[name][choice[name]] - losses[name], -np.inf)
            k = int(np.argmax(gain))
            if gain[k] > 0 and (best is None or gain[k] > best[0]):
                best = gain[k], name, k, after[k]
        if best is None:
            return choice, problem.total(losses, choice, 0.0)
        _, name, k, spent = best
        choice[name] = k


def _between(
    problem: _Eliminated,
    tables: Tables,
    cheap: Tables,
    losses: Mapping[str, np.ndarray],
    price: float,
    limit: float,
    best: Tuple[Dict[str, int], float],
    max_nodes: int,
) -> Tuple[Dict[str, int], float]:
    """The best choice within the limit by branch and bound from `best`, and a lower bound on its loss.

    The loss of every choice within the limit is at least its priced sum minus `price * limit`; the tables give that sum
    for the best completion of a partial choice, and the least cost of any. Branches with the smallest sum come first.
    After `max_nodes` nodes, the branches that are still open bound the loss.
    """
    names, offset = problem.order[::-1], price * limit
    found, upper = best
    # levels of the first names, bound on the loss, least cost
    stack: List[Tuple[Dict[str, int], float, float]] = [({}, tables[1] - offset, cheap[1])]
    n_nodes, open_bound = 0, np.inf
    while stack:
        chosen, bound, cost = stack.pop()
        tolerance = _tolerance(upper)
        if bound >= upper - tolerance:
            continue
        n_nodes += 1
        if n_nodes > max_nodes:
            open_bound = min(open_bound, bound)
            continue
        if len(chosen) == len(names):
            loss = problem.total(losses, chosen, 0.0)
            if loss < upper and problem.total({}, chosen, 1.0) <= limit:
                found, upper = chosen, loss
            continue
        name = names[len(chosen)]
        row, of_cost = (problem.row(of, name, chosen) for of in (tables, cheap))
        bounds, costs = bound + (row - row.min()), cost + (of_cost - of_cost.min())
        good = np.flatnonzero((costs <= limit) & (bounds < upper - tolerance))
        for k in good[np.argsort(-bounds[good], kind="stable")]:  # the most promising is visited next
            stack.append(({**chosen, name: int(k)}, float(bounds[k]), float(costs[k])))
    return found, min(upper, open_bound)

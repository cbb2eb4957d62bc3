"""What a choice of widths costs: a sum or maximum of terms that each depend on few groups; and budgets for costs.

Marginal prices, the selection of channels and exact solvers all read `Cost.terms`; nothing else needs to know whether a
cost counts multiply-accumulates, parameters or bytes, or predicts seconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from gcp.errors import UserError
from gcp.graph.network import Network, Widths
from gcp.registry import Registry

HALVINGS = 40  # bisection steps on an interval of scales: to one part in a trillion


class Term(NamedTuple):
    """One part of a cost: `value(*widths)` of the groups `names`, which are all different.

    There are usually at most two groups, which keeps exact solvers fast; without any, the term is a constant. `place`:
    the node or array of the network that the term is about, if it is about a single one.
    """

    names: Tuple[str, ...]
    value: Callable[..., float]
    place: str = ""


def product(coefficient: float, first: Optional[str] = None, second: Optional[str] = None, place: str = "") -> Term:
    """The term coefficient * width * width; None stands for a width of 1, and both names may be the same group."""
    factors = [name for name in (first, second) if name is not None]
    if not factors:
        return Term((), lambda: coefficient, place)
    if len(factors) == 1:
        return Term(tuple(factors), lambda a: coefficient * a, place)
    if factors[0] == factors[1]:
        return Term((factors[0],), lambda a: coefficient * a * a, place)
    return Term(tuple(factors), lambda a, b: coefficient * a * b, place)


class Cost:
    """Prices widths: the sum or the maximum of `terms`.

    `granularity`: None where every channel counts. Otherwise the device works in blocks of about this many channels,
    which makes the cost a staircase, whose slope `marginal` returns. `parts`: the same cost as more terms, each about a
    single place of the network, where `terms` join several places; the costs of other architectures differ by these.

    The values of the last call are kept, and only the terms of groups that have changed since are evaluated again.
    """

    def __init__(
        self,
        terms: Sequence[Term],
        combine: str = "sum",
        granularity: Optional[int] = None,
        parts: Optional[Sequence[Term]] = None,
    ) -> None:
        self.terms, self.granularity = tuple(terms), granularity
        self.parts = self.terms if parts is None else tuple(parts)
        self._combine = {"sum": sum, "max": max}[combine]
        self._terms_of: Dict[str, List[int]] = {}
        for k, term in enumerate(self.terms):
            for name in term.names:
                self._terms_of.setdefault(name, []).append(k)
        self._widths: Dict[str, int] = {}  # those of the last call
        self._values: List[float] = [0.0 if term.names else term.value() for term in self.terms]

    @property
    def is_sum(self) -> bool:
        """Whether the cost is the sum of its terms; otherwise it is the largest of them."""
        return self._combine is sum

    def _value(self, k: int, widths: Mapping[str, int]) -> float:
        names, value, _ = self.terms[k]
        return value(*[widths[name] for name in names])

    def __call__(self, widths: Mapping[str, int]) -> float:
        """The whole network's cost at these widths."""
        changed = [name for name in self._terms_of if self._widths.get(name) != widths[name]]
        for k in {k for name in changed for k in self._terms_of[name]}:
            self._values[k] = self._value(k, widths)
        self._widths.update((name, widths[name]) for name in changed)
        return float(self._combine(self._values))

    def marginal(self, widths: Mapping[str, int]) -> Dict[str, float]:
        """Per group, the drop in the whole network's cost when one of its channels is removed.

        On a staircase, removing a single channel usually saves nothing, and removing a block can cost more than it
        saves if an odd number of blocks is left. There, the price is the slope of the least-squares line through all
        multiples of the granularity from half the width up (at least the next smaller one). Where a channel can be
        free (a staircase or a maximum), each price is at least a thousandth of the mean, to avoid division by zero.
        """
        drops = {name: self._drop(name, widths) for name in widths}
        if self.granularity is None and self.is_sum:
            return drops
        least = 1e-3 * max(float(np.mean(list(drops.values()))), 1e-12)
        return {name: max(drop, least) for name, drop in drops.items()}

    def _drop(self, name: str, widths: Mapping[str, int]) -> float:
        now, of_group = widths[name], self._terms_of.get(name, ())
        others = []  # unchanged terms cancel in a difference of sums, but not in one of maxima
        if not self.is_sum:
            self(widths)
            others = [max((v for k, v in enumerate(self._values) if k not in of_group), default=0.0)]

        def cost_at(n: int) -> float:
            return self._combine(others + [self._value(k, {**widths, name: n}) for k in of_group])

        if self.granularity is None:
            return float(cost_at(now) - cost_at(now - 1))
        points = {now} | set(range(-(-now // (2 * self.granularity)) * self.granularity, now, self.granularity))
        if len(points) == 1:
            points.add(max(1, now - self.granularity) if now > 1 else 2)
        x = np.array(sorted(points), np.float64)
        return float(np.polyfit(x - x.mean(), [cost_at(int(n)) for n in x], 1)[0])


def along_a_line(cost: Cost, widths: Widths, fractions: Sequence[float], round_to: int = 1) -> List[float]:
    """The cost with all groups at each of these fractions of their widths, rounded to multiples of `round_to`."""
    return [
        cost({name: max(min(n, round_to), int(f * n / round_to + 0.5) * round_to) for name, n in widths.items()})
        for f in fractions
    ]


def largest_scale(at: Callable[[float], Widths], cost: Cost, limit: float, high: float) -> float:
    """The largest scale in [0, high] at which the cost of the widths `at(scale)` is within the limit, by bisection.

    The cost must not fall as the scale grows. If even a scale of 0 exceeds the limit, the result is 0.
    """
    low = 0.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if cost(at(middle)) <= limit else (low, middle)
    return low


def local_minima(values: Sequence[float]) -> int:
    """Number of places where a sequence stops falling and rises again; a search by small steps can end at any of them.

    The first value counts if the sequence rises from there.
    """
    found, falling = 0, True
    for before, after in zip(values, values[1:]):
        if after > before and falling:
            found, falling = found + 1, False
        elif after < before:
            falling = True
    return found


# A cost is registered as a function (network, options) -> Cost. What tables and figures call it are attributes of that
# function: `label`, `method` (the paper's name for GCP with this cost), `paper_label` (its name for the cost), `unit`.
COSTS: Registry[Callable[..., Cost]] = Registry("cost")


# ---- budgets ----------------------------------------------------------------------------------------------------


def minimum_widths(widths: Widths, round_to: int) -> Widths:
    """The smallest widths that pruning may leave: one block of `round_to` channels, or a whole smaller group."""
    return {name: min(n, round_to) for name, n in widths.items()}


def round_width(width: int, size: int, round_to: int) -> int:
    """The largest width <= `width` that a group of `size` channels may have: a multiple of `round_to`, or `size`."""
    if width >= size:
        return size
    return max(width // round_to * round_to, min(size, round_to))


Measure = Callable[[Network, float], Tuple[float, float]]  # of `Budget.measure`


@dataclass(frozen=True)
class Budget:
    """Keep at most the fraction `target` of the dense network's cost, `original`, which is in the units of `cost`.

    `priced_by` is the cost that a channel's importance is weighed against, if that is not `cost` itself. `measure`,
    where `cost` is a model of measured time and a sum of terms, returns the measured cost of a network and its standard
    error, both in the same units; it ends as soon as it is clear that the network misses a limit, which is its second
    argument. `cost_of` returns the same cost for another architecture, for methods that change more than widths.
    """

    cost: Cost
    original: float
    target: float
    round_to: int = 1
    priced_by: Optional[Cost] = None
    measure: Optional[Measure] = None
    cost_of: Optional[Callable[[Network], Cost]] = None

    def of(self, net: Network) -> float:
        """The cost of a network, which can have another architecture if there is `cost_of`."""
        return (self.cost if self.cost_of is None else self.cost_of(net))(net.widths)

    @property
    def price(self) -> Cost:
        """The cost that a channel's importance is weighed against."""
        return self.priced_by or self.cost

    def lowest(self, widths: Widths) -> float:
        """The smallest fraction of the original cost that pruning from `widths` can reach."""
        return self.cost(minimum_widths(widths, self.round_to)) / self.original

    def check(self, widths: Widths) -> None:
        """UserError unless pruning from `widths` can meet the target."""
        lowest = self.lowest(widths)
        if lowest > self.target:
            seconds = f" (a latency of {1e3 * lowest * self.original:.3g} ms)" if self.measure else ""
            raise UserError(
                f"prune.target: {self.target:g} cannot be reached: with every group at its smallest width "
                f"(prune.round_to: {self.round_to}) {lowest:.4f} of the cost{seconds} is left; give a "
                f"target of at least {np.ceil(lowest * 1e4) / 1e4:.4f} or a smaller prune.round_to"
            )

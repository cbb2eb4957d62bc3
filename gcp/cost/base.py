"""Widths -> multiply-accumulates or parameters, what one channel costs, and which budgets can be reached.

Both costs are sums of products of at most two widths, read off the same nodes and shapes that are pruned, so they
are exact and cheap: a cost of a whole ResNet-101 takes microseconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable, Dict, List, Mapping, Optional, Protocol, Tuple

import numpy as np

from gcp.errors import UserError
from gcp.graph.network import Network, Widths

TOLERANCE = 0.02  # a measured cost further than this from its target is corrected
CORRECTIONS = 4


class Cost(Protocol):
    """Anything that prices widths: MACs, parameters, or a latency model."""

    def __call__(self, widths: Mapping[str, int]) -> float:
        """The whole network's cost at these widths."""

    def marginal(self, widths: Mapping[str, int]) -> Dict[str, float]:
        """Per group, the drop in the whole network's cost when one of its channels goes."""


class Products:
    """A cost that is a sum of coefficient * width * width; `None` stands for a width of 1."""

    def __init__(self, terms: List[Tuple[float, Optional[str], Optional[str]]], groups: Tuple[str, ...]) -> None:
        self.groups = groups
        at = {name: i for i, name in enumerate(groups)}
        at[None] = len(groups)
        self._coefficient = np.array([t[0] for t in terms], np.float64)
        self._a = np.array([at[t[1]] for t in terms])
        self._b = np.array([at[t[2]] for t in terms])

    def _vector(self, widths: Mapping[str, int]) -> np.ndarray:
        return np.array([widths[g] for g in self.groups] + [1], np.float64)

    def __call__(self, widths: Mapping[str, int]) -> float:
        w = self._vector(widths)
        return float((self._coefficient * w[self._a] * w[self._b]).sum())

    def marginal(self, widths: Mapping[str, int]) -> Dict[str, float]:
        """Per group, the drop in cost when one of its channels goes."""
        w = self._vector(widths)
        drop = np.zeros(len(w))
        np.add.at(drop, self._a, self._coefficient * w[self._b])
        np.add.at(drop, self._b, self._coefficient * w[self._a])
        both = self._a == self._b  # w^2 - (w-1)^2 = 2w - 1
        np.add.at(drop, self._a[both], -self._coefficient[both])
        return dict(zip(self.groups, drop[:-1].tolist()))


# ---- budgets ----------------------------------------------------------------------------------------------------


def least_widths(widths: Widths, round_to: int) -> Widths:
    """The smallest widths that pruning may leave: one block of `round_to` channels, or all of a smaller group."""
    return {name: min(n, round_to) for name, n in widths.items()}


def allowed(width: int, size: int, round_to: int) -> int:
    """The largest width <= `width` that a group of `size` channels may have: a multiple of `round_to`, or `size`."""
    if width >= size:
        return size
    return max(width // round_to * round_to, min(size, round_to))


@dataclass(frozen=True)
class Budget:
    """Keep at most `target` of the dense network's cost. `original` is that cost, in the units of `cost`.

    `priced_by` is what a channel is weighed against, where that is not `cost` itself. `measure`, where a cost is a
    model of something that a clock tells, gives the real cost of a network in the same units.
    """

    cost: Cost
    original: float
    target: float
    round_to: int = 1
    priced_by: Optional[Cost] = None
    measure: Optional[Callable[[Network], float]] = None

    @property
    def price(self) -> Cost:
        """What a channel is weighed against."""
        return self.priced_by or self.cost

    def lowest(self, widths: Widths) -> float:
        """The smallest fraction of the original cost that pruning from `widths` can leave."""
        return self.cost(least_widths(widths, self.round_to)) / self.original

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


def meet(budget: Budget, limit: float, choose: Callable[[float], Network]) -> Tuple[Network, List[dict]]:
    """The network of `choose(limit)`; where costs can be measured, another limit is asked for until it really meets it.

    `choose(aim)` gives a network of at most that cost by the budget's model. A measured cost more than `TOLERANCE` off
    the limit corrects the aim by as much, up to `CORRECTIONS` times; the nearest network is taken. Returns a row per
    measurement: aim, predicted and measured cost, as fractions of the original.
    """
    net = choose(limit)
    if budget.measure is None:
        return net, []
    rows, found, aim = [], [], limit
    for _ in range(CORRECTIONS + 1):
        measured = budget.measure(net)
        rows.append(
            {
                "aim": aim / budget.original,
                "predicted": budget.cost(net.widths) / budget.original,
                "measured": measured / budget.original,
            }
        )
        found.append((abs(measured / limit - 1), len(found), net))
        if found[-1][0] <= TOLERANCE:
            break
        aim *= limit / measured
        try:
            net = choose(aim)
        except UserError:  # no width reaches the corrected aim
            break
        if any(net.widths == other.widths for _, _, other in found):
            break
    return min(found)[2], rows

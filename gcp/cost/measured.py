"""A cost is a model of something that a clock tells: how a network comes to the measured cost that was asked for.

There are two ways to correct the model. Where a method ranks channels, its aim is scaled by what the model missed. But
a solver that takes the best widths by a model finds those that the model underrates, and with a smaller aim it finds
others that are underrated as much. For a solver, the model itself is bent to what was measured.
"""

from __future__ import annotations

from typing import Callable, List, Sequence, Tuple

import numpy as np

from gcp.cost.base import Budget, Cost, Term
from gcp.errors import UserError
from gcp.graph.network import Network, Widths

MEASUREMENT_TOLERANCE = 0.02  # relative: a measured cost further than this from its target is corrected
MAX_CORRECTIONS = 4  # of an aim
MAX_BENT = 9  # corrections of a model: each tells what one choice of widths costs
# Relative standard deviations: of the factor that all terms of a model are off by, of each term, of a measurement.
COMMON, OWN, NOISE = 0.05, 0.15, 0.01
REACH = 0.25  # the change of a width's logarithm over which the error of a term becomes another one


def fit_to_measured_budget(
    budget: Budget, limit: float, choose: Callable[[float], Network]
) -> Tuple[Network, List[dict]]:
    """The network of `choose(limit)`; where the cost can be measured, corrected until the measured cost is `limit`.

    `choose(aim)` gives a network of at most that cost by the budget's model. A measured cost that is more than
    `MEASUREMENT_TOLERANCE` off the limit scales the aim by as much, up to `MAX_CORRECTIONS` times; the network nearest
    to the limit is returned, and a row for each measurement: aim, predicted and measured cost, as fractions of the
    original.
    """
    aim = limit

    def scaled(net: Network, measured: float) -> Tuple[float, Network]:
        nonlocal aim
        aim *= limit / measured
        return aim, choose(aim)

    return _until_met(budget, limit, choose(limit), scaled, MAX_CORRECTIONS)


def solve_to_measured_budget(
    budget: Budget, limit: float, solve: Callable[[Cost], Network]
) -> Tuple[Network, List[dict]]:
    """As `fit_to_measured_budget`, for what is best by a model: `solve(cost)` gives a network of at most `limit` by it.

    Up to `MAX_BENT` times the model is bent to all that was measured (`bent`), and asked again.
    """
    seen: List[Tuple[Widths, float]] = []

    def by_what_is_known(net: Network, measured: float) -> Tuple[float, Network]:
        seen.append((net.widths, measured))
        return limit, solve(bent(budget.cost, seen))

    return _until_met(budget, limit, solve(budget.cost), by_what_is_known, MAX_BENT)


def _until_met(
    budget: Budget, limit: float, net: Network, correct: Callable[[Network, float], Tuple[float, Network]], most: int
) -> Tuple[Network, List[dict]]:
    """`correct(network, measured)`: another aim and network, given a network that missed the limit."""
    if budget.measure is None:
        return net, []
    rows, found, aim = [], [], limit
    for _ in range(most + 1):
        measured = budget.measure(net)
        costs = {"aim": aim, "predicted": budget.of(net), "measured": measured}
        rows.append({key: value / budget.original for key, value in costs.items()})
        found.append((abs(measured / limit - 1), len(found), net))
        if found[-1][0] <= MEASUREMENT_TOLERANCE:
            break
        try:
            aim, net = correct(net, measured)
        except UserError:  # no width reaches the corrected aim
            break
        if any(net.widths == other.widths for _, _, other in found):
            break
    return min(found)[2], rows


def bent(cost: Cost, seen: Sequence[Tuple[Widths, float]]) -> Cost:
    """A cost by what it says and what was measured at some widths: the expected cost, given both.

    The errors of the terms are taken for a Gaussian process (Rasmussen & Williams, "Gaussian Processes for Machine
    Learning", 2006, equation 2.25): one factor that all have in common, and for each term one of its own, which is
    alike where widths are (`REACH`). What is expected is a sum of terms of the same groups again. A maximum of terms
    stays as it is.
    """
    if not seen or not cost.is_sum:
        return cost
    values = np.array([[_at(term, widths) for term in cost.terms] for widths, _ in seen])  # (measurements, terms)
    alike = np.array([[[_alike(term, a, b) for term in cost.terms] for b, _ in seen] for a, _ in seen])
    whole = values.sum(1)
    covariance = COMMON**2 * np.outer(whole, whole) + OWN**2 * np.einsum("at,bt,abt->ab", values, values, alike)
    covariance += np.diag((NOISE * whole) ** 2)
    weights = np.linalg.solve(covariance, np.array([measured for _, measured in seen]) - whole)
    common = 1 + COMMON**2 * float(weights @ whole)

    def expected(k: int, term: Term) -> Term:
        own = OWN**2 * weights * values[:, k]

        def value(*widths: int) -> float:
            here = dict(zip(term.names, widths))
            return term.value(*widths) * (
                common + sum(w * _alike(term, here, there) for w, (there, _) in zip(own, seen))
            )

        return Term(term.names, value, term.place)

    return Cost([expected(k, term) for k, term in enumerate(cost.terms)], granularity=cost.granularity)


def _at(term: Term, widths: Widths) -> float:
    return term.value(*[widths[name] for name in term.names])


def _alike(term: Term, a: Widths, b: Widths) -> float:
    """How alike a term's errors are at two choices of widths, in (0, 1]."""
    apart = sum(np.log(a[name] / b[name]) ** 2 for name in term.names)
    return float(np.exp(-apart / (2 * REACH**2)))

"""Meeting a measured cost where the cost is only a model, such as of latency: choices are corrected by measurements.

There are two ways to correct for the model's error. Where a method ranks channels, its aim is scaled by the relative
error. But a solver that takes the best widths by a model finds widths that the model underestimates, and with a smaller
aim it finds others that are underestimated as much. For a solver, the model itself is adjusted to the measurements.
"""

from __future__ import annotations

from typing import Callable, List, Sequence, Tuple

import numpy as np

from gcp.cost.base import Budget, Cost, Term
from gcp.errors import UserError
from gcp.graph.network import Network, Widths

MEASUREMENT_TOLERANCE = 0.02  # relative: a measured cost further than this from its target is corrected
MAX_CORRECTIONS = 4  # of an aim
MAX_BENT = 9  # corrections of a model: each adds the measured cost of one choice of widths
# Relative standard deviations: of the error that all terms of a model share, of each term's own, of a measurement.
COMMON, OWN, NOISE = 0.05, 0.15, 0.01
REACH = 0.25  # length scale of a term's error, in logarithms of widths


def fit_to_measured_budget(
    budget: Budget, limit: float, choose: Callable[[float], Network]
) -> Tuple[Network, List[dict]]:
    """The network of `choose(limit)`; where the cost can be measured, corrected until the measured cost is `limit`.

    `choose(aim)` returns a network of at most that cost by the budget's model. While the measured cost is more than
    `MEASUREMENT_TOLERANCE` off the limit, the aim is scaled by limit / measured, up to `MAX_CORRECTIONS` times. Returns
    the network nearest to the limit, and a row for each measurement: aim, predicted and measured cost, as fractions of
    the original.
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
    """As `fit_to_measured_budget`, for a solver: `solve(cost)` returns the best network within `limit` by that cost.

    Up to `MAX_BENT` times, the model is adjusted to all measurements so far (`bent`) and solved again.
    """
    seen: List[Tuple[Widths, float]] = []

    def by_what_is_known(net: Network, measured: float) -> Tuple[float, Network]:
        seen.append((net.widths, measured))
        return limit, solve(bent(budget.cost, seen))

    return _until_met(budget, limit, solve(budget.cost), by_what_is_known, MAX_BENT)


def _until_met(
    budget: Budget, limit: float, net: Network, correct: Callable[[Network, float], Tuple[float, Network]], most: int
) -> Tuple[Network, List[dict]]:
    """Correct until the limit is met; `correct(net, measured)` returns the next aim and network after a miss."""
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
        except UserError:  # no widths reach the corrected aim
            break
        if any(net.widths == other.widths for _, _, other in found):
            break
    return min(found)[2], rows


def bent(cost: Cost, seen: Sequence[Tuple[Widths, float]]) -> Cost:
    """The expected cost, given a model of the cost and measured costs at some widths (`seen`).

    The relative errors of the terms are modelled as Gaussian processes (Rasmussen & Williams, "Gaussian Processes for
    Machine Learning", 2006, equation 2.25): one error that all terms share, and for each term one of its own, which is
    similar at similar widths (`REACH`). The expected cost is again a sum of terms of the same groups. A cost that is a
    maximum of terms is returned unchanged.
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
    """The correlation of a term's errors at two choices of widths, in (0, 1]."""
    apart = sum(np.log(a[name] / b[name]) ** 2 for name in term.names)
    return float(np.exp(-apart / (2 * REACH**2)))

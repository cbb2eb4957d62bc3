"""Meeting a measured cost where the cost is only a model, such as of latency: choices are corrected by measurements.

There are two ways to correct for the model's error. Where a method ranks channels, its aim is scaled by the relative
error. But a solver that takes the best widths by a model finds widths that the model underestimates, and with a smaller
aim it finds others that are underestimated as much. For a solver, the model itself is adjusted to the measurements.
"""

from __future__ import annotations

from typing import Callable, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from gcp.cost.base import Budget, Cost, Term
from gcp.errors import UserError
from gcp.graph.network import Network, Widths

MEASUREMENT_TOLERANCE = 0.01  # relative: an expected cost further than this from its target is corrected
MAX_CORRECTIONS = 6  # measurements after the first, where an aim is corrected
MAX_TRIES = 6  # aims to try for one correction, since neighbouring aims can give the same widths
MAX_BENT = 9  # measurements after the first, where a model is corrected
CONFIRMED = 2  # measurements of a network before it counts as meeting the limit
# Relative standard deviations: of the error that all terms of a model share, of each term's own, and of what changes
# from one measurement to the next beyond the standard error within each (1.1 to 2.8 % on a processor that its host
# shares with others; it makes no difference whether a measurement is repeated by the same process or a new one).
COMMON, OWN, NOISE = 0.05, 0.15, 0.015
REACH = 0.25  # length scale of a term's error, in logarithms of widths


class Seen(NamedTuple):
    """Widths whose cost has been measured, the cost, and its standard error, in the units of the cost."""

    widths: Widths
    cost: float
    error: float = 0.0


# Given the cost that is expected after all measurements so far, and these: the next aim and network; None to stop.
Correction = Callable[[Cost, Sequence[Seen]], Optional[Tuple[float, Network]]]


def fit_to_measured_budget(
    budget: Budget, limit: float, choose: Callable[[float], Network]
) -> Tuple[Network, List[dict]]:
    """The network of `choose(limit)`; where the cost can be measured, corrected until it is expected to be `limit`.

    `choose(aim)` returns a network of at most that cost by the budget's model. While no measured network's expected
    cost (`bent`) is within `MEASUREMENT_TOLERANCE` or a standard error of the limit, the aim is corrected: scaled by
    limit / expected, or, once there are networks on both sides of the limit, set between their aims. A network within
    tolerance is measured again before it is taken (`CONFIRMED`). All in all, there are up to `MAX_CORRECTIONS` more
    measurements after the first. Returns the network nearest to the limit, and a row for each measurement: aim,
    predicted and measured cost, and the standard error, as fractions of the original.
    """
    tried = [(limit, choose(limit))]

    def corrected(expected: Cost, seen: Sequence[Seen]) -> Optional[Tuple[float, Network]]:
        for _ in range(MAX_TRIES):
            aim = next_aim([(aim, expected(net.widths) / limit) for aim, net in tried])
            tried.append((aim, choose(aim)))
            if all(tried[-1][1].widths != other.widths for other in seen):
                return tried[-1]
        return None

    return _until_met(budget, limit, tried[0][1], corrected, MAX_CORRECTIONS)


def next_aim(tried: Sequence[Tuple[float, float]]) -> float:
    """The next aim to try, given aims and their expected costs divided by the limit.

    If all costs are on one side of the limit, the outermost aim is scaled; or else the aim is interpolated, between
    logarithms, within the nearest two on either side, a tenth of their distance or more from both.
    """
    below, above = [[row for row in tried if (row[1] > 1) == is_above] for is_above in (False, True)]
    if not above:
        aim, ratio = max(below)
        return aim * max(1 / ratio, 1 + MEASUREMENT_TOLERANCE)
    if not below:
        aim, ratio = min(above)
        return aim * min(1 / ratio, 1 - MEASUREMENT_TOLERANCE)
    (low, low_ratio), (high, high_ratio) = max(below), min(above)
    share = np.clip(-np.log(low_ratio) / np.log(high_ratio / low_ratio), 0.1, 0.9)
    return float(low * (high / low) ** share)


def solve_to_measured_budget(
    budget: Budget, limit: float, solve: Callable[[Cost], Network]
) -> Tuple[Network, List[dict]]:
    """As `fit_to_measured_budget`, for a solver: `solve(cost)` returns the best network within `limit` by that cost.

    It is solved for the expected cost, and ends when that has been measured already, or after `MAX_BENT` more
    measurements.
    """

    def solved(expected: Cost, seen: Sequence[Seen]) -> Optional[Tuple[float, Network]]:
        net = solve(expected)
        return None if any(net.widths == other.widths for other in seen) else (limit, net)

    return _until_met(budget, limit, solve(budget.cost), solved, MAX_BENT)


def _until_met(
    budget: Budget, limit: float, net: Network, correct: Correction, most: int
) -> Tuple[Network, List[dict]]:
    """Correct until the limit is met: the network whose expected cost is nearest to it, and the measurements."""
    if budget.measure is None:
        return net, []
    rows, nets, seen, aim = [], [], [], limit

    def missed(net: Network) -> float:
        return abs(expected(net.widths) / limit - 1)

    for left in reversed(range(most + 1)):
        cost, error = budget.measure(net, limit)
        costs = {"aim": aim, "predicted": budget.of(net), "measured": cost, "error": error}
        rows.append({key: value / budget.original for key, value in costs.items()})
        nets.append(net)
        seen.append(Seen(net.widths, cost, error))
        expected = bent(budget.cost, seen)
        if not left:
            break
        # What differs by less than a standard error cannot be told apart.
        met = [k for k, of in enumerate(seen) if missed(nets[k]) <= max(MEASUREMENT_TOLERANCE, of.error / limit)]
        if met:
            best = min(met, key=lambda k: missed(nets[k]))
            if sum(of.widths == seen[best].widths for of in seen) >= CONFIRMED:
                break
            aim, net = rows[best]["aim"] * budget.original, nets[best]
            continue
        try:
            following = correct(expected, seen)
        except UserError:  # no widths reach the corrected aim
            break
        if following is None:
            break
        aim, net = following
    return min(nets, key=missed), rows


def bent(cost: Cost, seen: Sequence[Seen]) -> Cost:
    """The expected cost, given a model of the cost, which is a sum of terms, and measured costs at some widths.

    The relative errors of the terms are modelled as Gaussian processes (Rasmussen & Williams, "Gaussian Processes for
    Machine Learning", 2006, equation 2.25): one error that all terms share, and for each term one of its own, which is
    similar at similar widths (`REACH`). The expected cost is again a sum of terms of the same groups.
    """
    if not seen:
        return cost
    values = np.array([[_at(term, own.widths) for term in cost.terms] for own in seen])  # (measurements, terms)
    alike = np.array([[[_alike(term, a.widths, b.widths) for term in cost.terms] for b in seen] for a in seen])
    whole = values.sum(1)
    covariance = COMMON**2 * np.outer(whole, whole) + OWN**2 * np.einsum("at,bt,abt->ab", values, values, alike)
    covariance += np.diag((NOISE * whole) ** 2 + np.array([own.error for own in seen]) ** 2)
    weights = np.linalg.solve(covariance, np.array([own.cost for own in seen]) - whole)
    common = 1 + COMMON**2 * float(weights @ whole)

    def expected(k: int, term: Term) -> Term:
        own = OWN**2 * weights * values[:, k]

        def value(*widths: int) -> float:
            here = dict(zip(term.names, widths))
            return term.value(*widths) * (
                common + sum(w * _alike(term, here, there.widths) for w, there in zip(own, seen))
            )

        return Term(term.names, value, term.place)

    return Cost([expected(k, term) for k, term in enumerate(cost.terms)], granularity=cost.granularity)


def _at(term: Term, widths: Widths) -> float:
    return term.value(*[widths[name] for name in term.names])


def _alike(term: Term, a: Widths, b: Widths) -> float:
    """The correlation of a term's errors at two choices of widths, in (0, 1]."""
    apart = sum(np.log(a[name] / b[name]) ** 2 for name in term.names)
    return float(np.exp(-apart / (2 * REACH**2)))

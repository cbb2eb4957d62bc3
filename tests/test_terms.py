"""Sums and maxima of terms: against their obvious version, and what is evaluated when one width changes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gcp.cost.base import COSTS, Cost, Term, along_a_line, local_minima, product

NAMES = ("a", "b", "c", "d")
FACTORS = st.tuples(st.integers(0, 50), st.sampled_from((None, *NAMES)), st.sampled_from((None, *NAMES)))
WIDTHS = st.fixed_dictionaries({name: st.integers(1, 40) for name in NAMES})


def by_hand(terms, widths, combine):
    widths = {**widths, None: 1}
    return combine([c * widths[a] * widths[b] for c, a, b in terms])


@pytest.mark.slow
@given(st.lists(FACTORS, min_size=1, max_size=8), st.lists(WIDTHS, min_size=1, max_size=4), st.booleans())
def test_costs_and_marginal_prices_are_those_of_the_obvious_version(terms, calls, is_sum):
    combine = sum if is_sum else max
    cost = Cost([product(float(c), a, b) for c, a, b in terms], "sum" if is_sum else "max")
    for widths in calls:  # one after the other: only what has changed is evaluated again
        assert cost(widths) == by_hand(terms, widths, combine)
        drops = {
            n: by_hand(terms, widths, combine) - by_hand(terms, {**widths, n: widths[n] - 1}, combine) for n in NAMES
        }
        least = 0.0 if is_sum else 1e-3 * max(np.mean(list(drops.values())), 1e-12)
        assert cost.marginal(widths) == {n: max(drop, least) for n, drop in drops.items()}


def test_only_the_terms_of_a_changed_group_are_evaluated_again():
    calls = []

    def counted(*names):
        return Term(names, lambda *widths: calls.append(names) or float(sum(widths)))

    cost = Cost([counted(), counted("a"), counted("a", "b"), counted("b", "c"), counted("c")])
    widths = {"a": 1, "b": 2, "c": 3}
    assert cost(widths) == 0 + 1 + 3 + 5 + 3 and len(calls) == 5
    calls.clear()
    assert cost({**widths, "a": 7}) == 0 + 7 + 9 + 5 + 3 and sorted(calls) == [("a",), ("a", "b")]
    calls.clear()
    assert cost({**widths, "a": 7}) == 24 and calls == []


def test_on_a_staircase_a_channel_costs_the_slope_of_the_stairs():
    cost = Cost([Term(("a",), lambda a: -(-a // 8) * 8.0), Term(("b",), lambda b: 5.0)], granularity=8)
    assert cost.marginal({"a": 64, "b": 16}) == {"a": pytest.approx(1.0), "b": pytest.approx(0.5e-3)}
    assert min(cost.marginal({"a": 1, "b": 1}).values()) > 0


def test_every_registered_cost_says_what_tables_need():
    for name in COSTS:
        entry = COSTS[name]
        assert all(isinstance(getattr(entry, key), str) for key in ("label", "method", "paper_label", "unit"))
    assert [COSTS[name].method for name in ("macs", "params", "latency")] == ["GCP-f", "GCP-p", "GCP-latency"]


@pytest.mark.parametrize(
    "values, n",
    [([1, 2, 3], 1), ([3, 2, 1], 0), ([2, 1, 1, 3], 1), ([1, 2, 1, 2, 1], 2), ([3, 1, 2, 0, 4, 4], 2), ([1, 1], 0)],
)
def test_local_minima_by_hand(values, n):
    assert local_minima(values) == n


def test_widths_on_a_line_are_rounded_and_never_empty():
    cost = Cost([product(1.0, "a"), product(100.0, "b")])
    assert along_a_line(cost, {"a": 10, "b": 4}, (0.01, 0.25, 0.5, 1.5)) == [101, 103, 205, 615]
    # Multiples of 8, or all of a smaller group.
    assert along_a_line(cost, {"a": 10, "b": 4}, (0.01, 1.0, 1.5), 8) == [408, 808, 816]

"""Widths under a budget against brute force, on hundreds of small random graphs with ties; and on real networks."""

from itertools import product as all_choices

import numpy as np
import pytest
from networks import shape_only

from gcp.cost.analytic import macs
from gcp.cost.base import Cost, Term, product
from gcp.errors import UserError
from gcp.search import solvers


def random_problem(seed):
    """Up to six groups of up to four levels; small whole numbers, so that many choices are alike."""
    rng = np.random.default_rng(seed)
    names = "abcdef"[: rng.integers(2, 7)]
    levels = {name: np.sort(rng.choice(np.arange(1, 9), rng.integers(1, 5), replace=False)).tolist() for name in names}
    terms = [product(float(rng.integers(1, 4)), name) for name in names] + [product(2.0)]
    for _ in range(rng.integers(0, 8)):
        a, b = rng.choice(list(names), 2)
        terms.append(product(float(rng.integers(1, 3)), str(a), str(b)))
    if rng.random() < 0.5:  # a staircase that is not monotone, as latencies are
        terms.append(Term((names[0], names[-1]), lambda a, b: float((3 * a + 5 * b) % 7)))
    combine = "max" if seed % 5 == 0 else "sum"
    gains = {name: np.sort(rng.integers(0, 5, len(of))).astype(float) for name, of in levels.items()}
    return gains, levels, Cost(terms, combine)


def brute_force(gains, levels, cost, limit):
    """The largest value within the limit, and the least cost of all."""
    best, least = -np.inf, np.inf
    for choice in all_choices(*[range(len(of)) for of in levels.values()]):
        price = cost({name: levels[name][k] for name, k in zip(levels, choice)})
        least = min(least, price)
        if price <= limit * (1 + 1e-9):
            best = max(best, sum(gains[name][k] for name, k in zip(levels, choice)))
    return best, least


@pytest.mark.slow
@pytest.mark.parametrize("part", range(4))
def test_the_best_widths_are_those_of_brute_force(part):
    n_refused = 0
    for seed in range(100 * part, 100 * part + 100):
        gains, levels, cost = random_problem(seed)
        top = cost({name: of[-1] for name, of in levels.items()})
        for share in (0.15, 0.4, 0.7, 1.2):
            best, least = brute_force(gains, levels, cost, share * top)
            if np.isinf(best):
                n_refused += 1
                with pytest.raises(UserError) as error:
                    solvers.Solver(levels, cost).solve(gains, share * top)
                assert error.value.key == "search.limit"
                assert not cost.is_sum or f"{least:.6g}" in str(error.value)
                continue
            found = solvers.Solver(levels, cost).solve(gains, share * top)
            assert found.value == best and found.bound == pytest.approx(best) and found.gap == 0, (seed, share)
            assert found.cost == cost(found.widths) <= share * top * (1 + 1e-9)
            assert found.value == sum(gains[n][levels[n].index(w)] for n, w in found.widths.items())
    assert n_refused > 0


def test_where_the_search_between_multipliers_stops_the_bound_is_still_one():
    """No node at all: what a multiplier gives, made better group by group; the bound is the dual's."""
    n_open = 0
    for seed in range(60):
        gains, levels, cost = random_problem(seed)
        limit = 0.5 * cost({name: of[-1] for name, of in levels.items()})
        best, _ = brute_force(gains, levels, cost, limit)
        if np.isfinite(best):
            found = solvers.Solver(levels, cost).solve(gains, limit, max_nodes=0)
            assert found.cost <= limit * (1 + 1e-9) and found.value <= best <= found.bound + 1e-9
            n_open += found.gap > 0
    assert n_open > 5


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_the_scale_of_gains_makes_no_difference(scale):
    """Squared gradients can be tiny: what is best is best for all that, and what it is worth scales."""
    for seed in range(40):
        gains, levels, cost = random_problem(seed)
        limit = 0.6 * cost({name: of[-1] for name, of in levels.items()})
        best, _ = brute_force(gains, levels, cost, limit)
        if np.isfinite(best):
            scaled = {name: scale * of for name, of in gains.items()}
            found = solvers.Solver(levels, cost).solve(scaled, limit)
            assert found.value == pytest.approx(scale * best) and found.gap == 0
            own, other = (
                solvers.Solver(levels, cost).marginals(values, limit, temperature)
                for values, temperature in ((gains, 0.3), (scaled, 0.3 * scale))
            )
            assert all(np.allclose(other[name], at) for name, at in own.items())


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_worth_no_finite_number_is_refused(bad):
    gains, levels, cost = random_problem(1)
    gains["b"][-1] = bad
    for ask in (lambda s: s.solve(gains, 1e9), lambda s: s.marginals(gains, 1e9, 1.0), lambda s: s.front(gains, 3)):
        with pytest.raises(UserError, match="'b': what its choices are worth"):
            ask(solvers.Solver(levels, cost))


@pytest.mark.parametrize("part", range(2))
def test_marginals_are_those_of_all_choices(part):
    """The price is read off the brute force's own: that of the least-cost choice among the best at it."""
    for seed in range(50 * part, 50 * part + 50):
        gains, levels, cost = random_problem(seed)
        limit, temperature = 0.6 * cost({name: of[-1] for name, of in levels.items()}), (0.3, 2.0, 1e-3)[seed % 3]
        choices = list(all_choices(*[range(len(of)) for of in levels.values()]))
        costs = np.array([cost({n: levels[n][k] for n, k in zip(levels, c)}) for c in choices])
        values = np.array([sum(gains[n][k] for n, k in zip(levels, c)) for c in choices])
        if costs.min() > limit:
            continue
        price, within = 0.0, np.where(costs <= limit, 0.0, np.inf) if not cost.is_sum else 0.0
        if cost.is_sum:  # the dual, on all its corners
            gaps = np.subtract.outer(costs, costs)
            corners = np.divide(np.subtract.outer(values, values), gaps, out=np.zeros_like(gaps), where=gaps != 0)
            corners = np.unique(np.append(corners[corners > 0], 0.0))
            price = min(corners, key=lambda p: (round((values - p * costs).max() + p * limit, 9), p))
        logs = (values - price * costs - within) / temperature
        p = np.exp(logs - logs.max())
        found = solvers.Solver(levels, cost).marginals(gains, limit, temperature)
        for at, name in enumerate(levels):
            right = np.bincount([c[at] for c in choices], p / p.sum(), len(levels[name]))
            np.testing.assert_allclose(found[name], right, atol=1e-6, err_msg=f"{seed} {name}")


@pytest.mark.slow
def test_the_front_holds_the_best_at_each_of_its_costs():
    for seed in range(40):
        gains, levels, cost = random_problem(seed)
        solver = solvers.Solver(levels, cost)
        front = solver.front(gains, 9)
        assert front[0].cost == solver.lowest and front[-1].value == sum(map(max, gains.values()))
        for a, b in zip(front, front[1:]):
            assert a.cost < b.cost and a.value < b.value
        for solution in front:
            assert solution.value == brute_force(gains, levels, cost, solution.cost)[0]


@pytest.mark.slow
def test_a_network_with_residual_ties():
    """ResNet-18 on a grid: nothing that a change of two groups' widths gives is better, and the gap is small."""
    net = shape_only("resnet18_v1b", (3, 32, 32))
    cost, rng = macs(net), np.random.default_rng(0)
    levels = {name: [max(8, n * k // 8) for k in range(1, 9)] for name, n in net.widths.items()}
    gains = {name: np.cumsum(np.sort(rng.random(8))[::-1]) for name in levels}
    found = solvers.Solver(levels, cost).solve(gains, 0.3 * cost(net.widths))
    assert found.cost <= 0.3 * cost(net.widths) and 0 <= found.gap < 0.01
    for a, b in all_choices(levels, levels):
        for i, j in all_choices(range(8), range(8)):
            other = {**found.widths, a: levels[a][i], b: levels[b][j]}
            if cost(other) <= 0.3 * cost(net.widths):
                assert sum(gains[n][levels[n].index(w)] for n, w in other.items()) <= found.value + 1e-9


def test_what_is_too_tightly_tied_is_refused():
    names = [f"g{i}" for i in range(12)]
    cost = Cost([product(1.0, a, b) for a in names for b in names if a < b])
    levels = {name: list(range(1, 41)) for name in names}
    with pytest.raises(UserError) as error:
        solvers.Solver(levels, cost)
    assert error.value.key == "search.width"


@pytest.mark.parametrize("n", [26, 300])
def test_a_term_of_many_groups_is_refused_before_its_table_is_made(n):
    """As the peak memory of a DenseNet, which holds the outputs of many layers at once: 14 ** n entries."""
    names = tuple(f"g{i}" for i in range(n))
    cost = Cost([Term(names, lambda *widths: float(sum(widths)))], "max")
    with pytest.raises(UserError) as error:
        solvers.Solver({name: list(range(1, 15)) for name in names}, cost)
    assert error.value.key == "search.width"


def test_the_lowest_maximum_takes_few_eliminations(monkeypatch):
    """Of max(a, 1000 - a), it is 500. With every value up to there tried in turn, there would be 500 eliminations."""
    cost = Cost([product(1.0, "a"), Term(("a", "b"), lambda a, b: 1000.0 - a)], "max")
    solver = solvers.Solver({"a": list(range(1, 1000)), "b": [1]}, cost)
    calls, within = [], solver._within
    monkeypatch.setattr(solver, "_within", lambda limit: calls.append(limit) or within(limit))
    assert solver.lowest == 500 and len(calls) <= 10


def test_a_limit_that_rounding_puts_below_a_maximum_is_met():
    """0.29 * 100 is 28.999999999999996 in floats."""
    for combine in ("sum", "max"):
        solver = solvers.Solver({"a": [29, 100]}, Cost([product(1.0, "a")], combine))
        assert solver.solve({"a": np.array([0.0, 1.0])}, 0.29 * 100).widths == {"a": 29}

"""A model bent to what a clock said, and what a solver finds by it."""

from types import SimpleNamespace

import numpy as np
import pytest
from scipy import optimize

from gcp.cost import measured
from gcp.cost.base import Budget, Cost, Term, product
from gcp.cost.measured import Seen, bent, fit_to_measured_budget, next_aim, solve_to_measured_budget
from gcp.search.solvers import Solver

GROUPS = [f"g{k}" for k in range(8)]
LEVELS = {name: [8, 16, 24, 32, 48, 64, 80, 96] for name in GROUPS}
WIDTHS = dict.fromkeys(GROUPS, 64)
MODEL = Cost([product(1e-3, a, b) for a, b in zip(GROUPS, GROUPS[1:])] + [product(0.02, name) for name in GROUPS])


def missed(seed, sd=0.2):
    """The model, each of whose terms is off by a factor that changes with its widths within `REACH`."""
    rng = np.random.default_rng(seed)

    def wrong(term):
        apart = np.subtract.outer(*2 * [np.log(LEVELS[term.names[0]])])
        root = np.linalg.cholesky(np.exp(-(apart**2) / 2 / measured.REACH**2) + 1e-9 * np.eye(len(apart)))
        factors = np.exp(sd * np.array(root @ rng.normal(size=(len(root),) * len(term.names))))
        factors = factors if factors.ndim == 1 else np.exp(np.log(factors) @ root.T)

        def value(*widths):
            return term.value(*widths) * factors[tuple(LEVELS[g].index(n) for g, n in zip(term.names, widths))]

        return Term(term.names, value, term.place)

    return Cost([wrong(term) for term in MODEL.terms])


def drawn(n, seed=0):
    rng = np.random.default_rng(seed)
    return [{name: int(rng.choice(of)) for name, of in LEVELS.items()} for _ in range(n)]


def test_a_bent_model_says_what_was_measured_where_it_was():
    truth, some = missed(0), drawn(6)
    seen = [Seen(widths, truth(widths)) for widths in some]
    found = bent(MODEL, seen)
    before = [abs(MODEL(widths) / cost - 1) for widths, cost, _ in seen]
    after = [abs(found(widths) / cost - 1) for widths, cost, _ in seen]
    assert max(after) < 3 * measured.NOISE < max(before)
    assert [term.names for term in found.terms] == [term.names for term in MODEL.terms]


def test_a_bent_model_is_the_conditional_mean_written_out():
    """Of the joint Gaussian of all terms at all widths in question."""
    truth, (new, *some) = missed(1), drawn(4)
    whole = np.array([[term.value(*[w[n] for n in term.names]) for term in MODEL.terms] for w in [new, *some]])

    def covariance(a, b, i, j):
        total = measured.COMMON**2 * whole[i].sum() * whole[j].sum()
        for k, term in enumerate(MODEL.terms):
            apart = sum(np.log(a[n] / b[n]) ** 2 for n in term.names) / measured.REACH**2
            total += measured.OWN**2 * whole[i, k] * whole[j, k] * np.exp(-apart / 2)
        return total + (i == j) * ((measured.NOISE * whole[i].sum()) ** 2 + errors[i] ** 2)

    points, errors = [new, *some], [0.0, 0.5, 0.0, 0.2, 0.1]
    joint = np.array([[covariance(a, b, i, j) for j, b in enumerate(points)] for i, a in enumerate(points)])
    missing = np.array([truth(w) for w in some]) - whole[1:].sum(1)
    expected = whole[0].sum() + joint[0, 1:] @ np.linalg.solve(joint[1:, 1:], missing)
    assert bent(MODEL, [Seen(w, truth(w), e) for w, e in zip(some, errors[1:])])(new) == pytest.approx(expected)


def test_what_all_terms_miss_alike_is_expected_everywhere():
    seen = [Seen(widths, 1.25 * MODEL(widths)) for widths in drawn(6)]
    assert bent(MODEL, seen)(drawn(1, 5)[0]) / MODEL(drawn(1, 5)[0]) == pytest.approx(1.25, abs=0.05)


def test_a_model_without_measurements_stays_as_it_is():
    assert bent(MODEL, []) is MODEL


def test_a_measurement_that_is_not_certain_counts_for_less():
    """Far off with a large error: the model is believed; with a small one: the clock."""
    off = 1.3 * MODEL(WIDTHS)
    assert bent(MODEL, [Seen(WIDTHS, off, off)])(WIDTHS) == pytest.approx(MODEL(WIDTHS), rel=0.01)
    assert bent(MODEL, [Seen(WIDTHS, off, 0.0)])(WIDTHS) == pytest.approx(off, rel=0.02)


def test_the_next_aim():
    """Scaled while all costs are on one side, and at least by the tolerance; then between the nearest of both sides."""
    assert next_aim([(10, 1.25)]) == pytest.approx(8) and next_aim([(10, 0.8), (9, 0.5)]) == pytest.approx(12.5)
    assert next_aim([(10, 1.001)]) < 9.91 and next_aim([(10, 0.999)]) > 10.09
    assert next_aim([(10, 1.2), (8, 1 / 1.2)]) == pytest.approx(80**0.5)
    assert next_aim([(10, 1.2), (8, 1 / 1.2), (9, 0.9)]) == next_aim([(10, 1.2), (9, 0.9)])
    assert next_aim([(10, 2.0), (8, 0.9999)]) == pytest.approx(8 * (10 / 8) ** 0.1), "not where it has been"


@pytest.mark.parametrize("target", [0.23, 0.37, 0.61])
def test_what_is_coarse_is_searched_between_its_neighbours(target):
    """Uniform widths in steps, by a model that is off by a quarter: no other step is nearer by the true cost."""
    steps = [dict.fromkeys(GROUPS, 1 + 63 * k / 100) for k in range(101)]
    truth = lambda widths: 1.25 * MODEL(widths)  # noqa: E731
    budget = Budget(MODEL, MODEL(WIDTHS), target, 1, None, lambda net, limit: (truth(net.widths), 0.0))
    limit = target * budget.original

    def choose(aim):
        return SimpleNamespace(widths=max((w for w in steps if MODEL(w) <= aim), key=MODEL))

    net, rows = fit_to_measured_budget(budget, limit, choose)
    nearest = min(abs(truth(widths) / limit - 1) for widths in steps)
    assert abs(truth(net.widths) / limit - 1) <= max(nearest, 1.1 * measured.MEASUREMENT_TOLERANCE)
    assert len(rows) <= 1 + measured.MAX_CORRECTIONS


@pytest.mark.parametrize("error, n_aims", [(0.0, 2), (0.06, 1)])
def test_nothing_is_corrected_within_a_standard_error(error, n_aims):
    """A model that is off by 5 % is corrected if the clock is certain, but not if it might be off by 6 %."""
    model = Cost([product(1.0, "g")])
    clock = lambda net, limit: (1.05 * net.widths["g"], error * net.widths["g"])  # noqa: E731
    budget = Budget(model, 100.0, 0.5, 1, None, clock)
    _, rows = fit_to_measured_budget(budget, 50.0, lambda aim: SimpleNamespace(widths={"g": aim}))
    assert min(len({row["aim"] for row in rows}), 2) == n_aims and rows[0]["measured"] == pytest.approx(0.525)


@pytest.mark.parametrize("is_solver", [False, True])
def test_what_meets_the_limit_is_measured_again_and_given_up_if_it_met_it_by_chance(is_solver):
    """The clock is right except for the first time, when it takes 41.2 for the limit of 40."""
    model, timed = Cost([product(1.0, "g")]), []

    def clock(net, limit):
        timed.append(net.widths["g"])
        return timed[-1] / (1.03 if len(timed) == 1 else 1), 0.0

    def choose(aim):
        return SimpleNamespace(widths={"g": aim if timed else 41.2})

    def solve(cost):
        return choose(optimize.brentq(lambda width: cost({"g": width}) - 40, 20, 80))

    budget = Budget(model, 100.0, 0.4, 1, None, clock)
    net, _ = (
        solve_to_measured_budget(budget, 40.0, solve) if is_solver else fit_to_measured_budget(budget, 40.0, choose)
    )
    assert timed[:2] == [41.2, 41.2] and timed.count(net.widths["g"]) == measured.CONFIRMED
    assert net.widths["g"] == pytest.approx(40, rel=0.02)


def test_a_budget_without_a_clock_is_met_by_the_model():
    budget = Budget(MODEL, MODEL(WIDTHS), 0.5)
    asked = []
    net, rows = fit_to_measured_budget(budget, 3.0, lambda aim: asked.append(aim) or "network")
    assert (net, rows, asked) == ("network", [], [3.0])


def problem(truth, target=0.4):
    """A budget with a clock, and what is best by a cost and an aim."""
    budget = Budget(MODEL, MODEL(WIDTHS), target, 8, None, lambda net, limit: (truth(net.widths), 0.0))
    rng = np.random.default_rng(7)
    gains = {name: np.cumsum(np.sort(rng.exponential(size=len(of)))[::-1]) for name, of in LEVELS.items()}

    def best(cost, aim):
        return SimpleNamespace(widths=Solver(LEVELS, cost).solve(gains, aim).widths)

    return budget, best, lambda widths: sum(gains[name][LEVELS[name].index(n)] for name, n in widths.items())


@pytest.mark.slow
def test_a_solver_with_a_bent_model_loses_less_of_what_there_is_to_gain():
    """Beside the same solver whose aim is scaled: what each lacks to the best by the true cost, at its own cost."""
    lost = {"scaled": [], "bent": []}
    for seed in range(12):
        truth = missed(seed)
        budget, best, gain = problem(truth)
        limit = budget.target * budget.original
        for name, (net, rows) in {
            "scaled": fit_to_measured_budget(budget, limit, lambda aim: best(MODEL, aim)),
            "bent": solve_to_measured_budget(budget, limit, lambda cost: best(cost, limit)),
        }.items():
            assert 1 <= len(rows) <= 1 + max(measured.MAX_BENT, measured.MAX_CORRECTIONS)
            lost[name].append(gain(best(truth, truth(net.widths)).widths) - gain(net.widths))
    assert min(lost["bent"]) >= -1e-9 and np.mean(lost["bent"]) < 0.8 * np.mean(lost["scaled"])

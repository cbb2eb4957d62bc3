"""Allocations by a slow obvious version: the exact one against all widths there are."""

from itertools import product as all_choices

import numpy as np
import pytest
from networks import random_network

from gcp.cost.analytic import macs
from gcp.cost.base import Budget, Cost, product
from gcp.methods import allocation
from gcp.methods.allocation import ALLOCATIONS

COST = Cost([product(3.0, "a"), product(1.0, "a", "b"), product(2.0, "b"), product(1.0, "b", "c"), product(5.0)])
SIZES = {"a": 7, "b": 6, "c": 8}


def kept(scores, keep):
    return sum(scores[name][of].sum() for name, of in keep.items())


@pytest.mark.parametrize("round_to", [1, 2, 4])
@pytest.mark.parametrize("max_levels", [3, 64])
def test_the_exact_allocation_keeps_the_largest_sum_of_scores(round_to, max_levels, monkeypatch):
    """With few levels it looks between them afterwards: never above the budget, and near the best sum."""
    monkeypatch.setattr(allocation, "MAX_LEVELS", max_levels)
    for seed in range(12):
        rng = np.random.default_rng(seed)
        scores = {name: rng.exponential(size=n) for name, n in SIZES.items()}
        budget = Budget(COST, COST(SIZES), 0.5, round_to)
        limit = 0.5 * budget.original
        keep = ALLOCATIONS["exact"](scores, budget, limit)
        widths = {name: len(of) for name, of in keep.items()}
        assert COST(widths) <= limit
        assert all(w % round_to == 0 or w == SIZES[name] for name, w in widths.items())
        grid = [sorted({*range(min(n, round_to), n, round_to), n}) for n in SIZES.values()]
        best = max(
            sum(np.sort(scores[name])[::-1][:w].sum() for name, w in zip(SIZES, choice))
            for choice in all_choices(*grid)
            if COST(dict(zip(SIZES, choice))) <= limit
        )
        assert (1 - 1e-9 if max_levels == 64 else 0.9) * best <= kept(scores, keep) <= best + 1e-9


def test_exact_keeps_more_of_the_score_than_ranking_channels_one_by_one():
    net = random_network("cifar_resnet20_v1")
    cost, rng = macs(net), np.random.default_rng(0)
    budget = Budget(cost, cost(net.widths), 0.3, 4)
    scores = {name: rng.exponential(size=n) for name, n in net.widths.items()}
    price = cost.marginal(net.widths)
    limit = 0.3 * budget.original
    ranked = ALLOCATIONS["global"]({name: s / price[name] for name, s in scores.items()}, budget, limit)
    exact = ALLOCATIONS["exact"](scores, budget, limit)
    assert kept(scores, exact) >= kept(scores, ranked)
    assert cost({name: len(of) for name, of in exact.items()}) <= limit


def test_no_group_loses_more_than_allowed_unless_the_limit_wants_it():
    scores = {name: np.arange(1.0, n + 1) * (100 if name == "a" else 1) for name, n in SIZES.items()}
    budget = Budget(COST, COST(SIZES), 0.6, 1)
    keep = ALLOCATIONS["exact"](scores, budget, 0.6 * budget.original, 0.5)
    assert all(len(of) >= 0.5 * SIZES[name] for name, of in keep.items())
    less = ALLOCATIONS["exact"](scores, budget, 0.2 * budget.original, 0.1)
    assert COST({name: len(of) for name, of in less.items()}) <= 0.2 * budget.original


def test_uniform_is_uniform_pruning_of_the_same_scores():
    rng = np.random.default_rng(0)
    scores = {name: rng.random(n) for name, n in SIZES.items()}
    keep = ALLOCATIONS["uniform"](scores, Budget(COST, COST(SIZES), 0.9), 0.4 * COST(SIZES))
    fractions = [len(of) / SIZES[name] for name, of in keep.items()]
    assert COST({name: len(of) for name, of in keep.items()}) <= 0.4 * COST(SIZES)
    assert max(fractions) - min(fractions) < 0.25
    for name, of in keep.items():
        assert set(of) == set(np.argsort(-scores[name])[: len(of)])


@pytest.mark.parametrize("name", ["global", "exact"])
def test_a_group_can_lose_exactly_as_much_as_allowed(name):
    """7 of 10 channels: (1 - 0.7) * 10 is 3.0000000000000004 in floats. Those of b are worth far less."""
    cost = Cost([product(1.0, "a"), product(1.0, "b")])
    scores = {"a": 100 + np.arange(10.0), "b": np.arange(10.0)}
    keep = ALLOCATIONS[name](scores, Budget(cost, 20.0, 0.65), 13.0, 0.7)
    assert {group: len(of) for group, of in keep.items()} == {"a": 10, "b": 3}

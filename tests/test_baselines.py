"""Uniform pruning against its obvious version."""

from types import SimpleNamespace

import numpy as np
import pytest

from gcp.backend.zoo import from_gluoncv
from gcp.cost.analytic import macs, params
from gcp.cost.base import Budget
from gcp.methods import uniform as uniform_method
from gcp.methods.criteria import CRITERIA


@pytest.fixture(scope="module")
def net():
    return from_gluoncv("cifar_resnet20_v1", (3, 32, 32), 10, seed=0)


@pytest.mark.parametrize("cost_of", [macs, params])
@pytest.mark.parametrize("target", [0.9, 0.5, 0.2, 0.05])
def test_uniform_widths_are_the_largest_common_fraction(net, cost_of, target):
    cost = cost_of(net)
    budget = Budget(cost, cost(net.widths), target)
    widths = uniform_method.uniform_widths(net.widths, budget)
    assert cost(widths) <= target * budget.original
    best = max(
        (
            f
            for f in np.arange(1, 1001) / 1000
            if cost({g: max(1, int(f * n + 1e-9)) for g, n in net.widths.items()}) <= target * budget.original
        )
    )
    for g, n in net.widths.items():  # what is left of the budget buys at most one channel more in a group
        assert int(best * n) <= widths[g] <= max(1, int(best * n + 1e-9)) + 1


def test_rounded_uniform_widths(net):
    cost = macs(net)
    widths = uniform_method.uniform_widths(net.widths, Budget(cost, cost(net.widths), 0.5, round_to=8))
    assert all(n % 8 == 0 for n in widths.values())
    assert 0.4 < cost(widths) / cost(net.widths) <= 0.5


def test_l1_keeps_the_largest_producers(net):
    g = next(g for g in net.groups if len(g.producers) > 1)
    by_hand = [sum(float(np.abs(net.arrays[net.weight(p)][j]).sum()) for p in g.producers) for j in range(g.size)]
    np.testing.assert_allclose(CRITERIA["l1"](SimpleNamespace(net=net))[g.name], by_hand, rtol=1e-5)


def test_random_is_seeded(net):
    a, b, c = (CRITERIA["random"](SimpleNamespace(net=net, seed=s)) for s in (1, 1, 2))
    assert all(np.array_equal(a[g], b[g]) for g in a) and any(not np.array_equal(a[g], c[g]) for g in a)

"""Torch-Pruning as a method: its choice by hand, the budget; refused in a line where it is not installed."""

import importlib.util
from types import SimpleNamespace

import numpy as np
import pytest
from networks import random_network

from gcp.cost.analytic import macs
from gcp.cost.base import Budget
from gcp.errors import UserError
from gcp.methods.base import METHODS, Problem
from gcp.methods.torch_pruning import TorchPruningOptions
from tests.test_prune import Noise


def problem_of(net, target=0.5, round_to=4):
    cost, data = macs(net), SimpleNamespace(train=Noise(24), validation=Noise(8))
    return Problem(net, Budget(cost, cost(net.widths), target, round_to), data, 0, 8, statistics_images=16)


def test_without_it_there_is_one_line(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    problem = problem_of(random_network("cifar_resnet20_v1", (3, 8, 8), 4))
    with pytest.raises(UserError) as error:
        TorchPruningOptions().check(problem.net, problem.budget)
    assert error.value.key == "torch.absent" and "scripts/peers.sh" in str(error.value)


@pytest.mark.parametrize("importance", ["magnitude", "bn_scale"])
def test_its_choice_is_within_the_budget(importance):
    pytest.importorskip("torch_pruning")
    net = random_network("cifar_resnet20_v1", (3, 8, 8), 4)
    options = TorchPruningOptions(importance=importance)
    outcome = METHODS["torch_pruning"](problem_of(net), options, SimpleNamespace(path=None, log=None))
    cost = macs(net)
    assert 0.3 * cost(net.widths) < cost(outcome.network.widths) <= 0.5 * cost(net.widths)
    assert outcome.images == {"statistics": 16} and sum(outcome.images.values()) == options.n_images(24, 8, 16)
    assert all(n % 4 == 0 for n in outcome.network.widths.values())


def test_by_scales_of_one_group_it_keeps_the_largest():
    """Group by group, from half of the cost on: the largest scales of the norm behind a conv inside a block."""
    pytest.importorskip("torch_pruning")
    net = random_network("cifar_resnet20_v1", (3, 8, 8), 4)
    options = TorchPruningOptions(importance="bn_scale", global_pruning=False)
    small = METHODS["torch_pruning"](problem_of(net, round_to=1), options, SimpleNamespace(path=None, log=None)).network
    for group in (g for g in net.groups if len(g.norms) == 1):
        name = net.norm_arrays(group.norms[0])[0]
        n = small.widths[group.name]
        assert n < group.size
        assert set(np.abs(small.arrays[name])) == set(np.sort(np.abs(net.arrays[name]))[-n:])

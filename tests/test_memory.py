"""Peak activation memory: by hand, against a slow simulation at many widths, and as a budget."""

from __future__ import annotations

import math

import mxnet as mx
import numpy as np
import pytest
from networks import built, random_network, shape_only

from gcp import benchmark
from gcp.cost.base import Budget, minimum_widths
from gcp.cost.memory import peak_memory
from gcp.graph.operators import operator
from gcp.graph.surgery import resized
from gcp.methods.uniform import uniform_widths
from gcp.search.solvers import Solver

NETWORKS = {
    "resnet18_v1b": 64,
    "mobilenet0.25": 32,
    "mobilenetv2_0.25": 32,
    "se_resnet18_v1": 64,
    "shufflenet_v2": 64,
    "cifar_resnext29_32x4d": 16,
    "squeezenet1.1": 224,
}


def simulated(net):
    """Walks the nodes with a heap of numbered buffers: what is still read stays, the rest is freed."""
    left = {}
    for node in net.nodes:
        for tensor in node.inputs:
            left[tensor] = left.get(tensor, 0) + 1
    for tensor in net.outputs:
        left[tensor] = left.get(tensor, 0) + 1
    holds, bytes_of, peak = {}, {}, 0  # tensor -> buffer; buffer -> bytes
    for i, node in enumerate(net.nodes):
        if net.is_array(i):
            continue
        for tensor in node.inputs:
            left[tensor] -= 1
        for o, shape in enumerate(net.shapes[i]):
            if o and not left.get((i, o)):
                continue
            size, over = 4 * math.prod(shape), None
            for tensor in node.inputs if o == 0 and operator(node.op).in_place else ():
                own = holds.get(tensor)
                sharers = [t for t, b in holds.items() if b == own and left.get(t)]
                if own is not None and own != "image" and not sharers and bytes_of[own] == size:
                    over = own
                    break
            holds[i, o] = "image" if i == net.data else over if over is not None else (i, o)
            bytes_of[holds[i, o]] = size
        peak = max(peak, sum(bytes_of.values()))
        for buffer in set(bytes_of) - {holds[t] for t, n in left.items() if n and t in holds}:
            del bytes_of[buffer]
    return peak


@pytest.mark.parametrize("name", NETWORKS)
def test_the_peak_is_that_of_a_simulation_at_any_widths(name):
    net, rng = shape_only(name, (3, NETWORKS[name], NETWORKS[name])), np.random.default_rng(0)
    cost = peak_memory(net)
    for scale in (1.0, 0.5, 0.25, None, None, None):
        widths = {g: max(1, round(n * (scale or rng.uniform(0.1, 1.5)))) for g, n in net.widths.items()}
        assert cost(widths) == simulated(resized(net, widths))


def test_resnet18_by_hand():
    """At 224 px the stem's output of 64 x 112 x 112 is the most, when pooling makes 64 x 56 x 56 of it."""
    net = shape_only("resnet18_v1b")
    assert peak_memory(net)(net.widths) == 4 * (64 * 112 * 112 + 64 * 56 * 56)
    # With a narrow stem, which is also what the first stage adds to, two maps of the second stage and its shortcut.
    widths = {**net.widths, "conv0": 8}
    assert peak_memory(net)(widths) == 4 * 3 * 128 * 28 * 28


def test_nothing_is_written_over_what_is_still_read_or_over_the_image():
    x = mx.sym.Convolution(mx.sym.var("data"), num_filter=4, kernel=(1, 1), name="a")
    y = mx.sym.relu(x, name="b")  # x is read again: a second buffer
    z = mx.sym.elemwise_add(mx.sym.relu(y, name="c"), x, name="d")  # c over b, d over c or a
    net = built(mx.sym.FullyConnected(z, num_hidden=2, name="e"), (3, 2, 2))
    assert peak_memory(net)(net.widths) == 4 * 2 * 4 * 2 * 2
    image = built(mx.sym.Convolution(mx.sym.relu(mx.sym.var("data")), num_filter=1, kernel=(1, 1)), (8, 2, 2))
    assert peak_memory(image)(image.widths) == 4 * 2 * 8 * 2 * 2


def test_halves_of_a_split_are_two_buffers():
    """Alike in size and in when they are there: while the image is read, and while both are joined again."""
    a, b = mx.sym.split(mx.sym.var("data"), num_outputs=2, axis=1, name="halves")
    x = mx.sym.Convolution(mx.sym.concat(b, a, dim=1), num_filter=1, kernel=(4, 4), name="conv")
    net = built(mx.sym.FullyConnected(x, num_hidden=2, name="last"), (8, 4, 4))
    assert peak_memory(net)(net.widths) == simulated(net) == 4 * (8 + 4 + 4) * 16


def test_a_budget_of_memory_is_met_by_all_that_read_terms():
    net = random_network("cifar_resnet20_v1")
    cost = peak_memory(net)
    budget = Budget(cost, cost(net.widths), 0.5, 2)
    found = uniform_widths(net.widths, budget)
    assert 0.4 < cost(found) / budget.original <= 0.5
    levels = {g: list(range(2, n + 1, 2)) for g, n in net.widths.items()}
    gains = {g: np.sqrt(of) for g, of in levels.items()}
    best = Solver(levels, cost).solve(gains, 0.5 * budget.original)
    assert best.cost <= 0.5 * budget.original
    assert best.value >= sum(np.sqrt(n) for n in found.values())
    assert Solver(levels, cost).lowest == cost(minimum_widths(net.widths, 2))


@pytest.mark.slow
@pytest.mark.parametrize("name", benchmark.PLANNED)
def test_mxnets_planner_does_not_get_by_with_less(name):
    planned, peak = benchmark.planned_bytes(name, benchmark.PLANNED[name])
    assert 1 <= planned / peak < 2.5

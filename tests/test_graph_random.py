"""Random small graphs: silenced is removed, and what removal costs is what the cost of the widths says."""

from __future__ import annotations

import mxnet as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import built, difference, images, random_keep

from gcp.backend import blocks, files
from gcp.cost.analytic import macs, params
from gcp.graph.surgery import fold_gates, shrink, silence, with_gates

SIZE = 6  # px; every operator here keeps it, and 8 channels, so that any two tensors can meet


def conv(x, name, **how):
    return mx.sym.Convolution(x, num_filter=8, kernel=(1, 1), name=name, **how)


def shuffled(x):
    pairs = mx.sym.swapaxes(mx.sym.reshape(x, shape=(0, -4, 2, -1, -2)), dim1=1, dim2=2)
    return mx.sym.reshape(pairs, shape=(0, -3, -2))


STEPS = {
    "conv": lambda x, y, name: conv(x, name),
    "norm": lambda x, y, name: mx.sym.BatchNorm(conv(x, name, no_bias=True), fix_gamma=False, name=f"{name}norm"),
    "relu": lambda x, y, name: mx.sym.relu(x),
    "sigmoid": lambda x, y, name: mx.sym.sigmoid(x),
    "add": lambda x, y, name: x + y,
    "gate": lambda x, y, name: mx.sym.broadcast_mul(x, mx.sym.sigmoid(mx.sym.mean(y, axis=(2, 3), keepdims=True))),
    "concat": lambda x, y, name: conv(mx.sym.Concat(x, y), name),
    "depthwise": lambda x, y, name: conv(x, name, num_group=8),
    "grouped": lambda x, y, name: conv(x, name, num_group=2),
    "groups": lambda x, y, name: conv(x, name, num_group=4),
    "shuffle": lambda x, y, name: shuffled(x),
    "halves": lambda x, y, name: mx.sym.Concat(
        mx.sym.slice_axis(x, axis=1, begin=0, end=4), mx.sym.slice_axis(y, axis=1, begin=4, end=8)
    ),
}
GRAPHS = (
    st.lists(st.tuples(st.sampled_from(sorted(STEPS)), st.integers(0, 3), st.integers(0, 3)), min_size=2, max_size=9),
    st.sampled_from([0.0, 0.3, 0.6]),
)


def check(steps, fraction):
    made = [conv(mx.sym.var("data"), "first")]
    for k, (step, a, b) in enumerate(steps):
        made.append(STEPS[step](made[max(0, len(made) - 1 - a)], made[max(0, len(made) - 1 - b)], f"step{k}"))
    pooled = mx.sym.Pooling(made[-1], global_pool=True, pool_type="avg")
    net = built(mx.sym.FullyConnected(pooled, num_hidden=3, name="out"), (3, SIZE, SIZE))
    x = images(net)
    for each in (net, with_gates(net)):
        keep = random_keep(each, fraction)
        small, widths = shrink(each, keep), {g: len(kept) for g, kept in keep.items()}
        expected = blocks.predict(silence(each, keep), x)
        if expected.std() > 1e-3 * np.abs(expected).max():  # else the network says the same of every image
            assert difference(blocks.predict(small, x), expected) < 2e-5
            assert difference(blocks.predict(fold_gates(small), x), expected) < 2e-5
        assert small.shapes == files.node_shapes(small, (3, SIZE, SIZE)) and small.widths == widths
        added = sum(v.size for k, v in small.arrays.items() if k not in each.arrays)
        assert macs(each)(widths) == macs(small)(widths)
        assert params(each)(widths) + added == params(small)(widths)


@pytest.mark.slow
@settings(max_examples=10, deadline=None, derandomize=True, database=None)
@given(*GRAPHS)
def test_random_graphs(steps, fraction):
    check(steps, fraction)


@pytest.mark.slow
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(*GRAPHS)
def test_many_random_graphs(steps, fraction):
    check(steps, fraction)

"""Pruning without training: least squares against numpy's, what it makes better, and the method as a whole."""

from types import SimpleNamespace

import mxnet as mx
import numpy as np
import pytest
from networks import built, difference, images, random_keep, random_network

from gcp.backend.blocks import predict
from gcp.cost.analytic import macs
from gcp.cost.base import Budget
from gcp.graph.surgery import shrink
from gcp.methods.base import METHODS, Problem
from gcp.train import loop, reconstruct
from tests.test_prune import Noise

X = np.random.default_rng(0).normal(size=(16, 3, 8, 8)).astype(np.float32)


@pytest.fixture
def every_place(monkeypatch):
    """Exact least squares on all of the images."""
    monkeypatch.setattr(reconstruct, "POSITIONS", 10**6)
    monkeypatch.setattr(reconstruct, "RIDGE", 1e-9)


def convs(groups=1, **how):
    """A conv with a bias, one that reads it, and a dense layer."""
    x = mx.sym.Convolution(mx.sym.var("data"), num_filter=8, kernel=(3, 3), pad=(1, 1), name="first")
    x = mx.sym.Activation(x, act_type="relu", name="relu")
    x = mx.sym.Convolution(x, num_filter=8, num_group=groups, name="second", **how)
    x = mx.sym.Pooling(x, global_pool=True, pool_type="avg")
    return built(mx.sym.FullyConnected(x, num_hidden=3, name="out"), (3, 8, 8))


HOW = {
    "plain": dict(kernel=(3, 3), pad=(1, 1)),
    "strided": dict(kernel=(3, 3), pad=(1, 1), stride=(2, 2)),
    "dilated": dict(kernel=(3, 3), pad=(0, 1), dilate=(2, 1)),
    "pointwise": dict(kernel=(1, 1), no_bias=True),
    "even": dict(kernel=(2, 4), stride=(1, 2)),
}


@pytest.mark.parametrize("how", HOW)
def test_weights_are_those_of_least_squares(how, every_place):
    """Pixel by pixel, what the second conv reads and should say, through numpy's own solver."""
    net, x = convs(**HOW[how]), X
    keep = {g.name: np.arange(5 if g.name == "first" else 8) for g in net.groups}
    small = shrink(net, keep)
    batches = SimpleNamespace(seed=0, since=lambda first: iter([(mx.nd.array(x), None)]))
    fitted = reconstruct.reconstruct(net, small, keep, batches, 1)

    def tensor(network, name):
        return reconstruct.tensors_of(network, [(network.index[name], 0)])(mx.nd.array(x))[0]

    read, wanted = tensor(small, "relu"), tensor(net, "second")
    (kh, kw), stride = HOW[how]["kernel"], HOW[how].get("stride", (1, 1))
    pad, dilate = HOW[how].get("pad", (0, 0)), HOW[how].get("dilate", (1, 1))
    read = np.pad(read, ((0, 0), (0, 0), (pad[0],) * 2, (pad[1],) * 2))
    rows = []
    for n in range(len(x)):
        for i in range(wanted.shape[2]):
            for j in range(wanted.shape[3]):
                top, left = i * stride[0], j * stride[1]
                rows.append(
                    read[n, :, top : top + kh * dilate[0] : dilate[0], left : left + kw * dilate[1] : dilate[1]].ravel()
                )
    rows, targets = np.array(rows, np.float64), wanted.transpose(0, 2, 3, 1).reshape(len(rows), -1)
    has_bias = not HOW[how].get("no_bias", False)
    columns = np.hstack([rows, np.ones((len(rows), 1))]) if has_bias else rows
    by_hand = np.linalg.lstsq(columns, targets, rcond=None)[0].T
    weight = fitted.arrays["second_weight"].reshape(8, -1)
    np.testing.assert_allclose(weight, by_hand[:, : weight.shape[1]], atol=2e-3)
    if has_bias:
        np.testing.assert_allclose(fitted.arrays["second_bias"], by_hand[:, -1], atol=2e-3)


@pytest.mark.parametrize("groups", [1, 2, 8])
def test_what_a_layer_says_comes_nearer_on_the_images_that_it_was_fitted_to(groups, every_place):
    net, x = convs(groups, kernel=(3, 3), pad=(1, 1)), X
    keep = random_keep(net, 0.5)
    small = shrink(net, keep, "mean")
    batches = SimpleNamespace(seed=0, since=lambda first: iter([(mx.nd.array(x), None)]))
    fitted = reconstruct.reconstruct(net, small, keep, batches, 1)
    before, after, whole = predict(small, x), predict(fitted, x), predict(net, x)
    assert np.square(after - whole).sum() < 0.9 * np.square(before - whole).sum()
    assert fitted.widths == small.widths


@pytest.mark.slow
def test_a_norm_takes_up_what_is_left_over_and_nothing_changes_where_nothing_was_cut():
    net = random_network("cifar_resnet20_v1")
    batches = loop.Batches(Noise(16), 8, 0)
    batches.split.x = images(net, 16)
    whole = {g.name: np.arange(g.size) for g in net.groups}
    same = reconstruct.reconstruct(net, net, whole, batches, 2)
    assert difference(predict(same, images(net)), predict(net, images(net))) < 1e-4
    keep = random_keep(net, 0.6)
    small = shrink(net, keep, "mean")
    fitted = reconstruct.reconstruct(net, small, keep, batches, 2)
    x = images(net, 16)
    errors = [np.square(predict(n, x) - predict(net, x)).sum() for n in (small, fitted)]
    assert errors[1] < 0.5 * errors[0]


@pytest.mark.slow
@pytest.mark.parametrize("allocation", ["exact", "global", "uniform"])
def test_the_method_meets_its_budget_and_counts_its_images(allocation):
    net = random_network("cifar_resnet20_v1", (3, 8, 8), 4)
    cost, data = macs(net), SimpleNamespace(train=Noise(24), validation=Noise(8))
    problem = Problem(
        net,
        Budget(cost, cost(net.widths), 0.4),
        data,
        0,
        8,
        statistics_images=16,
        reconstruction_images=16,
        moved="mean",
    )
    options = METHODS.options["one_shot"](allocation=allocation)
    outcome = METHODS["one_shot"](problem, options, SimpleNamespace(log=None))
    assert cost(outcome.network.widths) <= 0.4 * cost(net.widths)
    assert outcome.images == {"scoring": 32, "statistics": 16, "reconstruction": 16}
    assert sum(outcome.images.values()) == options.n_images(24, 8, 32)
    again = METHODS["one_shot"](problem, options, SimpleNamespace(log=None)).network
    assert all(np.array_equal(outcome.network.arrays[k], again.arrays[k]) for k in again.arrays)


@pytest.mark.slow
def test_a_network_without_norms_is_cut_too():
    net = convs(kernel=(3, 3), pad=(1, 1))
    cost, data = macs(net), SimpleNamespace(train=Noise(24), validation=Noise(8))
    data.train.y = data.train.y % 3
    problem = Problem(net, Budget(cost, cost(net.widths), 0.5), data, 0, 8)
    small = METHODS["one_shot"](problem, METHODS.options["one_shot"](), SimpleNamespace(log=None)).network
    assert cost(small.widths) <= 0.5 * cost(net.widths) and not any("gate" in name for name in small.arrays)


@pytest.mark.parametrize("allocation", ["exact", "global"])
def test_a_floor_under_every_width(allocation):
    """One group has the smallest weights by far: without a floor it is cut to one channel."""
    net = random_network("cifar_resnet20_v1", (3, 8, 8), 4)
    group = next(g for g in net.groups if len(g.producers) == 1)
    weights = [f"{layer.removesuffix('_fwd')}_weight" for layer in group.producers]
    net = net.with_arrays({name: 1e-4 * net.arrays[name] for name in weights})
    cost = macs(net)
    data = SimpleNamespace(train=Noise(24), validation=Noise(8))
    problem = Problem(net, Budget(cost, cost(net.widths), 0.7), data, 0, 8)

    def width(**how):
        options = METHODS.options["one_shot"](criterion="l2", allocation=allocation, **how)
        return METHODS["one_shot"](problem, options, SimpleNamespace(log=None)).network.widths[group.name]

    assert width() == 1
    assert width(max_cut=0.5) == group.size // 2


@pytest.mark.parametrize("method", ["one_shot", "gcp"])
def test_a_floor_that_uniform_widths_cannot_have_is_refused(method):
    METHODS.options[method](allocation="uniform")
    METHODS.options[method](allocation="exact", max_cut=0.5)
    with pytest.raises(ValueError, match="max_cut: 0.5 has no effect with allocation: uniform"):
        METHODS.options[method](allocation="uniform", max_cut=0.5)

"""Small graphs that were cut wrongly once, and what they are after a cut: scores, groups, the mean that moves on."""

from __future__ import annotations

import mxnet as mx
import numpy as np
import pytest
from networks import built, difference, images, random_keep
from scipy import stats

from gcp.backend import files
from gcp.backend.blocks import predict
from gcp.cost.analytic import macs
from gcp.cost.base import Budget
from gcp.cost.layers import layers
from gcp.graph.operators import Gaussian
from gcp.graph.surgery import filters, fold_gates, rescale, shrink, silence, squared_input_norms, with_gates
from gcp.methods.base import Problem
from gcp.methods.criteria import CRITERIA

SHAPE = (3, 8, 8)
# `bn_scale` refuses graphs in which a group has no norm: tests/test_criteria.py.
WITHOUT_IMAGES = [name for name in CRITERIA if not hasattr(CRITERIA[name], "n_images") and name != "bn_scale"]


def conv(x, name, n=6, kernel=1, **how):
    return mx.sym.Convolution(x, num_filter=n, kernel=(kernel, kernel), name=name, **how)


def classifier(x):
    return mx.sym.FullyConnected(mx.sym.Pooling(x, global_pool=True, pool_type="avg"), num_hidden=3, name="dense")


def norm(x, name, free=True):
    return mx.sym.BatchNorm(x, fix_gamma=not free, name=name)


def unscaled_norm():
    """A norm whose scale is fixed at one in a group, as `BatchNorm(scale=False)` makes it, and a free one behind."""
    x = mx.sym.relu(norm(conv(mx.sym.var("data"), "first", no_bias=True), "fixed", free=False))
    return built(classifier(mx.sym.relu(norm(conv(x, "second", no_bias=True), "free"))), SHAPE)


def depthwise(with_norm=False):
    """A depthwise convolution between two plain ones."""
    x = mx.sym.relu(conv(mx.sym.var("data"), "first"))
    x = conv(x, "depthwise", kernel=3, num_group=6)
    x = mx.sym.relu(norm(x, "norm") if with_norm else x)
    return built(classifier(mx.sym.relu(conv(x, "last", 5))), SHAPE)


def scores(net, criterion):
    cost = macs(net)
    return CRITERIA[criterion](Problem(net, Budget(cost, cost(net.widths), 0.5), None, seed=0, batch=8))


@pytest.mark.parametrize("criterion", WITHOUT_IMAGES)
@pytest.mark.parametrize("make", [unscaled_norm, depthwise, lambda: depthwise(True)])
def test_every_criterion_that_needs_no_images_scores_and_cuts(make, criterion):
    assert len(WITHOUT_IMAGES) >= 4
    for net in (make(), rescale(with_gates(make()))):
        found = scores(net, criterion)
        assert {name: len(of) for name, of in found.items()} == net.widths
        assert all(np.isfinite(of).all() and (of >= 0).all() and len(set(of)) > 1 for of in found.values())
        keep = {name: np.sort(np.argsort(of)[-3:]) for name, of in found.items()}
        x = images(net)
        assert difference(predict(shrink(net, keep), x), predict(silence(net, keep), x)) < 1e-5


@pytest.mark.parametrize("criterion", ["paper", "relative"])
def test_a_channel_that_the_depthwise_kernel_loses_is_worth_nothing(criterion):
    net = depthwise()
    kernel = net.arrays["depthwise_weight"].copy()
    kernel[2] = 0
    of = scores(net.with_arrays({"depthwise_weight": kernel}), criterion)["first"]
    assert of[2] == 0 and (np.delete(of, 2) > 0).all()


@pytest.mark.parametrize("with_norm", [False, True])
def test_a_depthwise_group_of_one_channel_is_still_one(with_norm):
    net = depthwise(with_norm)
    for each in (net, with_gates(net)):
        once = shrink(each, {"first": np.array([4]), "last": np.array([0, 1, 3])})
        assert once.widths == {"first": 1, "last": 3}
        for before, after in zip(each.groups, once.groups):
            assert (before.name, before.producers, before.consumers, before.norms, before.depthwise) == (
                after.name,
                after.producers,
                after.consumers,
                after.norms,
                after.depthwise,
            )
        assert once.nodes[once.index["depthwise"]].literal("num_group") == 1
        keep, x = {"first": np.array([0]), "last": np.array([1, 2])}, images(net)
        twice = shrink(once, keep)
        assert twice.widths == {"first": 1, "last": 2}
        assert macs(once)(twice.widths) == macs(twice)(twice.widths)
        assert difference(predict(twice, x), predict(silence(once, keep), x)) < 1e-5


def chain(scale):
    """Two convs with norms; the first norm's scales are `scale`, and its shifts keep most of relu's inputs above 0."""
    x = mx.sym.relu(norm(conv(mx.sym.var("data"), "first", 12, no_bias=True), "norm"))
    net = built(classifier(mx.sym.relu(norm(conv(x, "second", 8, no_bias=True), "free"))), SHAPE)
    x = images(net, 64)
    # the statistics are those of the images, so that behind the norm there is N(shift, scale^2)
    made = np.einsum("oi,nihw->nohw", net.arrays["first_weight"][:, :, 0, 0], x) + 0.0
    statistics = {"norm_moving_mean": made.mean((0, 2, 3)), "norm_moving_var": made.var((0, 2, 3))}
    shift = np.linspace(-0.5, 0.5, 12)
    arrays = {**statistics, "norm_gamma": np.full(12, scale), "norm_beta": shift}
    return net.with_arrays({name: value.astype(np.float32) for name, value in arrays.items()}), x


def test_the_mean_of_live_channels_moves_on():
    net, x = chain(1.0)
    keep = {**random_keep(net, 0.5), "second": np.arange(8)}
    whole = predict(net, x)
    error = {moved: np.abs(predict(shrink(net, keep, moved), x) - whole).mean() for moved in ("silenced", "mean")}
    assert error["mean"] < 0.7 * error["silenced"]


def test_the_mean_of_dead_channels_is_their_constant():
    net, x = chain(0.0)
    keep = random_keep(net, 0.5)
    keep["second"] = np.arange(8)
    silenced, mean = (shrink(net, keep, moved) for moved in ("silenced", "mean"))
    for name, value in silenced.arrays.items():
        np.testing.assert_allclose(mean.arrays[name], value, rtol=1e-5, atol=1e-6, err_msg=name)
    assert difference(predict(mean, x) + 1e-3 * x.mean((2, 3)), predict(net, x) + 1e-3 * x.mean((2, 3))) < 1e-5


def test_the_mean_of_a_cut_layer_is_that_of_layers_that_are_not_cut():
    x = mx.sym.var("data")
    for name in ("first", "second"):
        x = mx.sym.relu(conv(x, name, 6))
    net = built(classifier(conv(x, "third", 4)), SHAPE)
    small = shrink(
        net, {g.name: np.arange(1, 6) if g.name == "second" else np.arange(g.size) for g in net.groups}, "mean"
    )
    weights = {name: net.arrays[f"{name}_weight"][:, :, 0, 0].astype(float) for name in ("first", "second", "third")}
    mean, variance = np.zeros(3), np.ones(3)  # of the image
    for name in ("first", "second"):
        mean = weights[name] @ mean + net.arrays[f"{name}_bias"]
        deviation = np.sqrt(np.square(weights[name]) @ variance)
        # Of a rectified Gaussian, by the integrals of x and x^2 over its positive half.
        density, positive = stats.norm.pdf(mean / deviation), stats.norm.cdf(mean / deviation)
        square = (mean**2 + deviation**2) * positive + mean * deviation * density
        mean = mean * positive + deviation * density
        variance = square - mean**2
    expected = net.arrays["third_bias"] + weights["third"][:, 0] * mean[0]
    np.testing.assert_allclose(small.arrays["third_bias"], expected, rtol=1e-5)


def features(name="first", image=None):
    image = mx.sym.var("data") if image is None else image
    return mx.sym.relu(norm(conv(image, name, 8, no_bias=True), name + "_norm"))


def pixel_shuffled():
    """Channels that are one unit become positions of one channel, by way of another reshape."""
    x = mx.sym.reshape(mx.sym.reshape(features(), shape=(0, -4, -1, 4, 0, 0)), shape=(0, 0, -4, 2, 2, 0, 0))
    x = mx.sym.reshape(mx.sym.transpose(x, axes=(0, 1, 4, 2, 5, 3)), shape=(0, 0, -3, -3))
    return built(classifier(mx.sym.relu(conv(x, "second"))), SHAPE)


def shared_layer():
    """One layer of two inputs, whose channels are one unit each but have constants of their own."""
    weight, bias = mx.sym.var("shared_weight"), mx.sym.var("shared_bias")
    image = mx.sym.var("data")
    a, b = features("a", image), features("b", image)
    a, b = (conv(x, name, weight=weight, bias=bias) for x, name in ((a, "left"), (b, "right")))
    return built(classifier(mx.sym.relu(a) + mx.sym.sigmoid(b)), SHAPE)


def boxes():
    """A box that lies partly beyond the border, where zeros are read."""
    box = mx.sym.var("box", shape=(1, 5))
    x = mx.sym.contrib.ROIAlign(features(), box, pooled_size=(2, 2), spatial_scale=1.0)
    net = built(mx.sym.FullyConnected(x, num_hidden=3, name="dense"), SHAPE)
    return net.with_arrays({"box": np.array([[0, -6, -6, 3, 3]], np.float32)})


def anchors():
    """An array cut to the size of the features, whose channels it does not count."""
    x = features()
    of = mx.sym.slice_like(mx.sym.var("anchors", shape=(1, 1, 16, 16)), x * 0, axes=(2, 3))
    return built(classifier(mx.sym.broadcast_add(mx.sym.relu(conv(x, "second", 1)), of)), SHAPE)


@pytest.mark.parametrize("make", [pixel_shuffled, shared_layer, boxes, anchors])
def test_removed_is_silenced(make):
    net = make()
    assert net.widths[net.groups[0].name] == (2 if make is pixel_shuffled else 8)
    for each in (net, with_gates(net)):
        keep = {g.name: np.arange(1, g.size, 2) for g in each.groups if g.size > 1}
        keep, x = {**random_keep(each, 0.0), **keep}, images(each)[: 1 if make is boxes else None]
        assert difference(predict(shrink(each, keep), x), predict(silence(each, keep), x)) < 1e-5


def test_an_array_of_the_network_that_is_called_a_gate_is_none_of_ours():
    array = mx.sym.var("u_gate", shape=(1, 6, 1, 1))
    x = mx.sym.relu(mx.sym.broadcast_mul(mx.sym.relu(conv(mx.sym.var("data"), "u")), array))
    net = built(classifier(conv(x, "last", 5)), SHAPE)
    gated, x = with_gates(net), images(net)
    assert {g.name: g.norms for g in gated.groups} == {"u": ("u_gate__fwd",), "last": ("last_gate_fwd",)}
    folded = fold_gates(gated)
    assert folded.nodes == net.nodes and "u_gate" in folded.arrays
    assert difference(predict(folded, x), predict(net, x)) < 1e-6


def test_a_tensor_that_is_called_a_gate_is_none_of_ours():
    x = conv(mx.sym.var("data"), "first")
    excite = mx.sym.sigmoid(conv(mx.sym.Pooling(x, global_pool=True, pool_type="avg"), "se"), name="se_gate")
    check_cut(classifier(mx.sym.broadcast_mul(x, excite)), {"first": 6})


def check_cut(symbol, widths, shape=SHAPE):
    """These groups can be cut, and what is removed is what is silenced, with gates and without."""
    net = built(symbol, shape)
    assert net.widths == widths
    x = images(net)
    for each in (net, with_gates(net)):
        keep = random_keep(each, 0.5)
        small = shrink(each, keep)
        expected = predict(silence(each, keep), x)
        assert difference(predict(small, x), expected) < 1e-5
        assert difference(predict(fold_gates(small), x), expected) < 1e-5
        assert small.shapes == files.node_shapes(small, shape)
        assert macs(each)(small.widths) == macs(small)(small.widths)
    return net


def test_every_second_channel_is_taken_from_channels_that_stay():
    x = mx.sym.slice(conv(mx.sym.var("data"), "first"), begin=(None, 0), end=(None, None), step=(None, 2))
    check_cut(classifier(conv(x, "last", 5)), {"last": 5})


@pytest.mark.parametrize(
    "function, passes",
    [
        (lambda x: mx.sym.clip(x, a_min=0.0, a_max=20.0), False),
        (lambda x: mx.sym.clip(x, a_min=-20.0, a_max=3.4028235e38), False),
        (lambda x: mx.sym.clip(x, a_min=0.0, a_max=3.4028235e38), True),
        (lambda x: mx.sym._internal._MinimumScalar(x, scalar=20.0), False),
        (lambda x: mx.sym._internal._MaximumScalar(x, scalar=-20.0), False),
        (lambda x: mx.sym._internal._MaximumScalar(x, scalar=0.0), True),
        (lambda x: mx.sym.relu(x * 2), True),
    ],
)
def test_factors_pass_through_bounds_only_where_no_value_can_meet_them(function, passes):
    x = norm(conv(mx.sym.var("data"), "first"), "norm")
    net = built(classifier(conv(function(x), "last", 5)), SHAPE)
    assert net.streams.held[net.streams.readers[net.index["last"]]].tolist() == [not passes] * 6
    net, x = net.with_arrays({"norm_gamma": net.arrays["norm_gamma"] * 30}), images(net)
    assert difference(predict(rescale(net), x), predict(net, x)) < 1e-5


def test_slopes_of_channels_are_along_the_first_axis_of_an_image_wherever_its_channels_are():
    x = mx.sym.transpose(conv(mx.sym.var("data"), "first", 5), axes=(0, 2, 3, 1))
    x = mx.sym.transpose(mx.sym.LeakyReLU(x, mx.sym.var("slopes", shape=(8,)), act_type="prelu"), axes=(0, 3, 1, 2))
    net = built(mx.sym.FullyConnected(x, num_hidden=3, name="dense"), SHAPE)
    assert net.structure.calls[net.nodes.index(next(n for n in net.nodes if n.op == "LeakyReLU"))].arrays == {}
    keep, x = random_keep(net, 0.5), images(net)
    assert difference(predict(shrink(net, keep), x), predict(silence(net, keep), x)) < 1e-5


IMAGE = mx.sym.var("data")


def first(**how):
    return conv(IMAGE, "first", **how)


def last(x):
    return classifier(mx.sym.relu(conv(x, "last", 5)))


def bare(x):
    """A layer without a bias behind a layer that is cut, so that its outputs lack constants."""
    return conv(mx.sym.relu(x), "bare", 4, no_bias=True)


def dense_along_rows(x):
    rows = mx.sym.FullyConnected(x, flatten=False, num_hidden=5, name="rows")
    return mx.sym.FullyConnected(rows, num_hidden=3, name="dense")


PLACES = mx.sym.var("places", shape=(1, 1, 8, 8))
EVERYWHERE = mx.sym.var("everywhere", shape=(1, 6, 8, 8))
UNEVEN = {  # what is not the same at all positions -> network, its groups
    "two tensors in a row": (lambda: last(mx.sym.Concat(first(), conv(IMAGE, "b"), dim=2)), {"first": 6}),
    "their sigmoid": (
        lambda: last(mx.sym.sigmoid(mx.sym.Concat(first(), conv(IMAGE, "b"), dim=2))), {"first": 6}
    ),
    "their mean": (lambda: classifier(mx.sym.Concat(first(), conv(IMAGE, "b"), dim=2)), {"first": 6}),
    "an array added": (lambda: last(mx.sym.broadcast_add(first(), EVERYWHERE)), {}),
    "its mean": (lambda: classifier(mx.sym.broadcast_add(first(), EVERYWHERE)), {"first": 6}),
    "its values": (
        lambda: mx.sym.FullyConnected(mx.sym.broadcast_add(first(), EVERYWHERE), num_hidden=3), {"first": 6}
    ),
    "its maximum": (
        lambda: mx.sym.FullyConnected(
            mx.sym.Pooling(mx.sym.broadcast_add(first(), EVERYWHERE), global_pool=True, pool_type="max"), num_hidden=3
        ), {"first": 6},
    ),
    "its maximum, MXNet's default": (
        lambda: mx.sym.FullyConnected(
            mx.sym.Pooling(mx.sym.broadcast_add(first(), EVERYWHERE), global_pool=True), num_hidden=3
        ), {"first": 6},
    ),
    "a factor": (lambda: last(mx.sym.broadcast_mul(first(), PLACES)), {"first": 6}),
    "its sigmoid": (lambda: last(mx.sym.sigmoid(mx.sym.broadcast_mul(first(), PLACES))), {"first": 6}),
    "a factor of what lacks constants": (
        lambda: last(mx.sym.broadcast_mul(bare(first()), PLACES)), {"first": 6, "bare": 4}
    ),
    "a factor ahead of a depthwise layer": (
        lambda: last(conv(mx.sym.broadcast_mul(first(), PLACES), "depthwise", num_group=6)), {"first": 6}
    ),
    "channels that become positions": (lambda: dense_along_rows(mx.sym.reshape(first(n=8), shape=(0, 4, -1))), None),
    "channels read along another axis": (lambda: dense_along_rows(bare(first())), {"first": 6, "rows": 5}),
    "a norm along another axis": (lambda: last(mx.sym.BatchNorm(bare(first()), axis=2, name="norm")), {"first": 6}),
    "a transposed layer with a stride": (
        lambda: last(mx.sym.Deconvolution(bare(first()), num_filter=3, kernel=(2, 2), stride=(2, 2), name="up")),
        {"first": 6, "bare": 4, "up": 3},
    ),
    "a mean that counts a border": (
        lambda: last(mx.sym.Pooling(bare(first()), kernel=(3, 3), pad=(1, 1), pool_type="avg")),
        {"first": 6, "bare": 4},
    ),
    "fixed channels that lack constants": (
        lambda: last(mx.sym.relu(conv(conv(mx.sym.relu(first()), "back", 3, no_bias=True) + IMAGE, "b",
                                      no_bias=True))), {"first": 6, "b": 6}
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", UNEVEN)
def test_what_is_removed_is_what_is_silenced_at_every_position(case):
    make, widths = UNEVEN[case]
    symbol = make()
    if widths is None:  # a unit of several channels of which one remains is another network
        net = built(symbol, SHAPE)
        keep, x = random_keep(net, 0.5), images(net)
        assert net.widths["first"] == 2
        assert difference(predict(shrink(net, keep), x), predict(silence(net, keep), x)) < 1e-5
        return
    check_cut(symbol, {**widths, **({"last": 5} if "last_weight" in symbol.list_arguments() else {})})


@pytest.mark.parametrize("size", [7, 14])
@pytest.mark.parametrize("function", [mx.sym.softmax, mx.sym.log_softmax, mx.sym.softmin])
def test_equal_shares_are_one_over_their_number(function, size):
    check_cut(classifier(function(first(), axis=2)), {"first": 6}, (3, size, size))
    check_cut(last(function(first(), axis=2)), {"first": 6, "last": 5}, (3, size, size))


def test_the_logarithm_of_a_softmax_is_one():
    net = built(classifier(mx.sym.log_softmax(first(), axis=2)), SHAPE)
    call = next(c for c in net.structure.calls.values() if c.node.op == "log_softmax")
    (found,) = call.operator.moments(call, [Gaussian(np.full((1, 6, 1, 1), 3.0), np.zeros((1, 6, 1, 1)))])
    np.testing.assert_allclose(found.mean, np.full((1, 6, 1, 1), -np.log(8)))
    assert not found.variance.any()


def excited(x):
    """Squeeze-excite."""
    return mx.sym.broadcast_mul(x, mx.sym.sigmoid(conv(mx.sym.Pooling(x, global_pool=True, pool_type="avg"), "excite")))


ADDED = {  # what is added to channels -> network, whether they can be cut
    "an array": (lambda a: mx.sym.relu(mx.sym.broadcast_add(a, mx.sym.var("v", shape=(1, 6, 1, 1)))), True),
    "an array, then a product": (
        lambda a: excited(mx.sym.broadcast_add(a, mx.sym.var("v", shape=(1, 6, 1, 1)))), False
    ),
    "a map": (lambda a: mx.sym.broadcast_add(a, conv(IMAGE, "map", 1)), False),
    "a map taken away": (lambda a: mx.sym.broadcast_sub(a, conv(IMAGE, "map", 1)), False),
    "the larger of a map": (lambda a: mx.sym.broadcast_maximum(a, conv(IMAGE, "map", 1)), False),
    "a mean": (lambda a: mx.sym.broadcast_add(a, mx.sym.mean(conv(IMAGE, "b"), axis=1, keepdims=True)), False),
    "a map as a factor": (lambda a: mx.sym.broadcast_mul(a, conv(IMAGE, "map", 1)), True),
    "a factor of a sigmoid": (lambda a: mx.sym.broadcast_mul(mx.sym.sigmoid(a), conv(IMAGE, "map", 1)), False),
    "such a product and another tensor": (
        lambda a: mx.sym.broadcast_mul(mx.sym.sigmoid(a), conv(IMAGE, "map", 1)) * conv(IMAGE, "b"), True
    ),
    "a vector": (
        lambda a: mx.sym.transpose(
            mx.sym.broadcast_add(mx.sym.transpose(a, axes=(0, 2, 3, 1)), mx.sym.var("v", shape=(1, 6))),
            axes=(0, 3, 1, 2),
        ), True,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", ADDED)
def test_channels_are_cut_only_if_what_is_added_stays_constant(case):
    make, cuts = ADDED[case]
    net = check_cut(last(make(first())), {**({"first": 6} if cuts else {}), "last": 5})
    assert difference(predict(rescale(with_gates(net)), images(net)), predict(net, images(net))) < 1e-5


def up(x, n, groups, size=2, **how):
    return mx.sym.Deconvolution(
        x, num_filter=n, kernel=(size, size), stride=(size, size), num_group=groups, name="up", **how
    )


TRANSPOSED = {  # outputs and groups of a transposed convolution of 8 channels -> groups of channels
    (8, 2): {"first": 4, "up": 4},
    (12, 4): {"first": 4},
    (8, 8): {"first": 8},
    (16, 8): {"first": 8},
}


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("outputs, groups", TRANSPOSED)
def test_transposed_convolutions_lose_groups_or_channels_of_each(outputs, groups, size):
    x = up(mx.sym.relu(first(n=8)), outputs, groups, size, no_bias=size == 2)
    net = check_cut(last(x), {**TRANSPOSED[outputs, groups], "last": 5})
    gated, x = with_gates(net), images(net)
    rng = np.random.default_rng(0)
    gates = {name: rng.uniform(0.5, 2, v.shape).astype("f4") for name, v in gated.arrays.items() if "gate" in name}
    gated = gated.with_arrays(gates)
    assert gates and difference(predict(fold_gates(gated), x), predict(gated, x)) < 1e-5
    assert difference(predict(rescale(gated), x), predict(gated, x)) < 1e-5
    one = shrink(net, random_keep(net, 0.0))
    assert one.widths == dict.fromkeys(net.widths, 1)
    weight = net.arrays["up_weight"].astype(float)
    by_hand = [sum(np.square(weight[j]).ravel()) for j in range(8)]  # a row of the weight for each input
    np.testing.assert_allclose(squared_input_norms(net, "up"), by_hand)
    if groups == 2:  # output 5 of 8, in the second of two groups, reads inputs 4 to 7
        row = dict(filters(net))["up"][5]
        np.testing.assert_allclose(np.sort(row), np.sort(weight[4:, 1].ravel()))


def test_a_depthwise_transposed_convolution_of_channels_that_stay():
    x = mx.sym.softmax(first(n=8), axis=1)
    check_cut(last(up(x, 8, 8)), {"last": 5})
    products = mx.sym.batch_dot(mx.sym.reshape(x, shape=(0, 8, -1)), mx.sym.reshape(x, shape=(0, -1, 8)))
    check_cut(last(up(mx.sym.reshape(products, shape=(0, 8, 8, 1)), 8, 8, size=1)), {"last": 5})


def test_a_pooling_whose_channels_are_last_keeps_all_that_it_reads():
    pooled = mx.sym.Pooling(first(), kernel=(2, 2), pool_type="avg", layout="NHWC")
    check_cut(mx.sym.FullyConnected(mx.sym.relu(conv(pooled, "last", 5)), num_hidden=3), {"last": 5})


def test_channels_of_a_position_of_a_box_stay():
    how = {"pooled_size": (2, 2), "spatial_scale": 1.0, "position_sensitive": True}
    boxes = mx.sym.contrib.ROIAlign(first(n=8), mx.sym.BlockGrad(mx.sym.ones((1, 5))), **how)
    check_cut(last(boxes), {"last": 5})


def test_tensors_that_an_enlargement_joins_stay():
    both = mx.sym.UpSampling(first(), conv(IMAGE, "b"), scale=2, sample_type="nearest", num_args=2)
    check_cut(last(both), {"last": 5})


@pytest.mark.parametrize("dtype, error", [("int32", 1e-5), ("float16", 2e-3)])
def test_constants_are_rounded_as_integers_are(dtype, error):
    x = mx.sym.relu(norm(first(), "norm")) * 3
    x = mx.sym.Cast(mx.sym.Cast(x, dtype=dtype), dtype="float32")
    net = built(last(x), SHAPE)
    keep, x = random_keep(net, 0.5), images(net)
    assert net.widths == {"first": 6, "last": 5}
    assert difference(predict(shrink(net, keep), x), predict(silence(net, keep), x)) < error
    assert net.streams.held[net.streams.readers[net.index["last"]]].tolist() == [dtype == "int32"] * 6


def test_a_random_slope_is_the_middle_of_its_bounds():
    x = mx.sym.LeakyReLU(first(), act_type="rrelu", lower_bound=0.6, upper_bound=0.9)[0]
    check_cut(last(x), {"first": 6, "last": 5})


@pytest.mark.parametrize("num_group", [6, 2])
def test_a_layer_of_one_width_reads_its_input_once(num_group):
    """Twelve channels are made of six, which are read once each, whatever the width that the cost is asked for."""
    net = built(last(conv(first(), "more", 12, num_group=num_group)), SHAPE)
    more = layers(net)[1]
    n_in, n_out = more.widths(net.widths)
    assert more.name == "more" and n_out == 12
    assert more.in_positions * n_in == 6 * 64 and more.out_positions * n_out == 12 * 64


def test_a_dense_layer_along_the_last_axis_has_as_many_outputs_as_positions():
    x = mx.sym.reshape(mx.sym.transpose(first(), axes=(0, 2, 3, 1)), shape=(0, 64, 6))
    x = mx.sym.relu(mx.sym.FullyConnected(x, flatten=False, num_hidden=16, name="along"))
    net = built(mx.sym.FullyConnected(x, num_hidden=3, name="dense"), SHAPE)
    along = layers(net)[1]
    assert (along.name, along.positions, along.in_positions) == ("along", 64, 64)
    assert along.out_positions == 64 + 64  # of itself and of relu

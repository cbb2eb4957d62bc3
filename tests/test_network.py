"""Groups, masks, rescaling and removal, against hand counts and against each other."""

from __future__ import annotations

import json

import mxnet as mx
import numpy as np
import pytest
from gluoncv.model_zoo import get_model
from networks import built, centre_taps, difference, drawn, images, random_keep, random_network, shape_only

from gcp.backend import blocks, files, zoo
from gcp.cost.analytic import macs
from gcp.errors import UserError
from gcp.graph.channels import is_depthwise, is_layer
from gcp.graph.network import Node, parse_nodes, residual_norms
from gcp.graph.surgery import (
    fold_gates,
    redrawn,
    rescale,
    resized,
    shrink,
    silence,
    squared_input_norms,
    stream_norms,
    variances,
    with_gates,
    with_zero_residuals,
)

NAMES = [f"resnet{depth}_{version}" for depth in (18, 34, 50, 101) for version in ("v1", "v1b", "v2")] + [
    "resnet50_v1d",
    "resnet101_v1d",
    "resnet18_v1b_0.89",
    "resnet50_v1d_0.86",
    "resnet50_v1d_0.48",
    "resnet50_v1d_0.37",
    "resnet50_v1d_0.11",
    "resnet101_v1d_0.76",
    "resnet101_v1d_0.73",
    "cifar_resnet20_v1",
    "mobilenet1.0",
    "mobilenetv2_1.0",
    "vgg16_bn",
]
DEEP = ("resnet50", "resnet101", "vgg")
LISTED = [pytest.param(n, marks=pytest.mark.slow) if n.startswith(DEEP) and n != "resnet50_v1d" else n for n in NAMES]
# One of every family, at the smallest size that shows it; the PruneNets stand for v1b and v1d.
FAMILIES = [
    pytest.param("resnet18_v1", marks=pytest.mark.slow),
    pytest.param("resnet50_v1", marks=pytest.mark.slow),
    pytest.param("resnet18_v2", marks=pytest.mark.slow),
    "resnet18_v1b_0.89",
    "resnet50_v1d_0.11",
    "cifar_resnet20_v1",
    "cifar_resnet20_v2",
    "mobilenet1.0",
    "mobilenetv2_1.0",
    pytest.param("vgg16_bn", marks=pytest.mark.slow),
]


# ---- groups -----------------------------------------------------------------------------------------------------


def test_groups_of_resnet18_by_hand():
    groups = {g.name: g for g in shape_only("resnet18_v1b").groups}
    assert [(g.name, g.size) for g in groups.values()] == [
        ("conv0", 64),
        ("layers1_conv0", 64),
        ("layers1_conv2", 64),
        ("layers2_conv0", 128),
        ("layers2_conv1", 128),
        ("layers2_conv2", 128),
        ("layers3_conv0", 256),
        ("layers3_conv1", 256),
        ("layers3_conv2", 256),
        ("layers4_conv0", 512),
        ("layers4_conv1", 512),
        ("layers4_conv2", 512),
    ]
    first, inner, second = groups["conv0"], groups["layers1_conv0"], groups["layers2_conv1"]
    assert first.producers == ("conv0_fwd", "layers1_conv1_fwd", "layers1_conv3_fwd")
    assert set(first.consumers) == {"layers1_conv0_fwd", "layers1_conv2_fwd", "layers2_conv0_fwd", "down2_conv0_fwd"}
    assert first.norms == ("batchnorm0_fwd", "layers1_batchnorm1_fwd", "layers1_batchnorm3_fwd")
    assert (inner.producers, inner.consumers) == (("layers1_conv0_fwd",), ("layers1_conv1_fwd",))
    assert set(second.producers) == {"layers2_conv1_fwd", "down2_conv0_fwd", "layers2_conv3_fwd"}
    assert "dense0_fwd" in groups["layers4_conv1"].consumers
    assert not any(g.depthwise for g in groups.values())


def n_groups(name: str) -> int:
    """Stem + one tied group a stage + the convs inside each block; the stem is tied where stage 1 adds to it."""
    base = name.replace("cifar_", "")
    if "resnet20" in base:
        return 3 + 9
    depth = int(base[len("resnet") :].split("_")[0])
    blocks = {18: 8, 34: 16, 50: 16, 101: 33}[depth]
    if depth < 50:
        return 4 + blocks
    return 1 + 4 + 2 * blocks + (2 if "v1d" in base else 0)


@pytest.mark.parametrize("name", LISTED)
def test_groups_of_every_listed_network(name):
    net = shape_only(name, (3, 32, 32) if "cifar" in name else (3, 224, 224))
    layers = [n.name for i, n in enumerate(net.nodes) if is_layer(net, i)]
    depthwise = [n.name for i, n in enumerate(net.nodes) if n.op == "Convolution" and is_depthwise(net, i)]
    produced = [p for g in net.groups for p in g.producers]
    consumed = [c for g in net.groups for c in g.consumers]
    # Every layer's outputs are one group's but the classifier's, every layer reads one group but the first.
    assert sorted(produced) == sorted(layers[:-1])
    assert sorted(consumed) == sorted(layers[1:])
    assert sorted(d for g in net.groups for d in g.depthwise) == sorted(depthwise)
    for g in net.groups:
        for p in g.producers:
            assert net.arrays[net.weight(p)].shape[0] == g.size
        for n in g.norms:
            assert net.arrays[net.norm_arrays(n)[0]].shape == (g.size,)
    if "resnet" in name:
        assert len(net.groups) == n_groups(name)
    if name.endswith(("_0.89", "_0.86", "_0.48", "_0.37", "_0.11", "_0.76", "_0.73")):
        assert all(g.size % 8 == 0 for g in net.groups)


def test_groups_of_mobilenets_and_vgg():
    sizes = [g.size for g in shape_only("mobilenet1.0").groups]
    assert sizes == [32, 64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024]
    assert all(len(g.depthwise) == 1 for g in shape_only("mobilenet1.0").groups[:-1])
    v2 = shape_only("mobilenetv2_1.0")
    # Stem, the outputs of seven stages (tied within each), the insides of 17 blocks but the first, the head.
    assert len(v2.groups) == 1 + 7 + 16 + 1
    assert [g.size for g in v2.groups if len(g.producers) > 1] == [24, 32, 64, 96, 160]
    vgg = shape_only("vgg16_bn")
    assert [g.size for g in vgg.groups] == [64] * 2 + [128] * 2 + [256] * 3 + [512] * 6 + [4096] * 2
    assert [bool(g.norms) for g in vgg.groups] == [True] * 13 + [False] * 2


def test_channels_that_a_layer_reads_ahead_of_their_norms_get_a_gate():
    # The shortcut of CIFAR's version-2 ResNets reads the raw sum, so no norm's scale alone can silence it.
    net = random_network("cifar_resnet20_v2")
    bare = {g.name for g in net.groups if not g.norms}
    assert bare == {"conv0", "stage2_conv1"}
    gated = with_gates(net)
    assert gated.widths == net.widths and all(g.norms for g in gated.groups)
    assert all(n.endswith("_gate_fwd") for g in gated.groups if g.name in bare for n in g.norms)


def test_an_unknown_operator_pins_what_it_reads_and_is_named_once():
    x = mx.sym.Convolution(mx.sym.var("data"), num_filter=4, kernel=(3, 3), name="conv0")
    x = mx.sym.Convolution(mx.sym.relu(x), num_filter=5, kernel=(1, 1), name="conv1")
    x = mx.sym.arcsinh(mx.sym.arcsinh(x, name="odd"), name="even")
    x = mx.sym.Convolution(x, num_filter=6, kernel=(1, 1), name="conv2")
    x = mx.sym.FullyConnected(mx.sym.relu(x), num_hidden=2, name="dense")
    with pytest.warns(UserWarning) as caught:
        net = built(x, (3, 8, 8))
        assert net.widths == {"conv0": 4, "conv2": 6}
    (said,) = [str(w.message) for w in caught if "arcsinh" in str(w.message)]
    assert "'arcsinh' at node 'odd'" in said and "'net'" in said and "\n" not in said
    keep, x = random_keep(net), images(net)
    assert difference(blocks.predict(shrink(net, keep), x), blocks.predict(silence(net, keep), x)) < 1e-5


def from_symbol(symbol, arrays, tmp_path, input_shape):
    """A network from a hand-made Symbol, through its saved form."""
    (tmp_path / "net-symbol.json").write_text(symbol.tojson())
    aux = set(symbol.list_auxiliary_states())
    mx.nd.save(
        str(tmp_path / "net-0000.params"),
        {("aux:" if k in aux else "arg:") + k: mx.nd.array(v) for k, v in arrays.items()},
    )
    return files.load(tmp_path / "net", input_shape)


def layers_around(make):
    """A conv, an operator, a conv and a dense layer."""
    x = mx.sym.Convolution(mx.sym.var("data"), num_filter=4, kernel=(3, 3), name="conv")
    x = mx.sym.Convolution(make(x), num_filter=4, kernel=(1, 1), name="next")
    return mx.sym.FullyConnected(mx.sym.relu(x), num_hidden=2, name="dense")


@pytest.mark.parametrize(
    "make",
    [
        lambda x: mx.sym.Pooling(x, kernel=(2, 2), pool_type="lp", p_value=2),
        lambda x: mx.sym.BatchNorm(x, axis=2, name="bn"),
        lambda x: mx.sym.sum(x, axis=1, keepdims=True),
        lambda x: mx.sym.softmax(x, axis=1),
        lambda x: mx.sym.L2Normalization(x, mode="channel"),
    ],
)
def test_operators_that_mix_channels_fix_them(make):
    net = built(layers_around(make), (3, 8, 8))
    assert "conv" not in net.widths and "next" in net.widths


@pytest.mark.parametrize(
    "make",
    [
        lambda x: mx.sym.Activation(x, act_type="softsign"),
        lambda x: mx.sym.LeakyReLU(x, act_type="elu"),
        lambda x: mx.sym.LeakyReLU(x, mx.sym.var("slope_bias"), act_type="prelu"),
        lambda x: mx.sym.elemwise_mul(x, x),
        lambda x: mx.sym.broadcast_mul(x, mx.sym.sigmoid(mx.sym.Pooling(x, global_pool=True, pool_type="avg"))),
        lambda x: mx.sym.broadcast_add(x, mx.sym.Pooling(x, global_pool=True, pool_type="avg")),
        lambda x: mx.sym.Concat(x, mx.sym.relu(x)),
        lambda x: mx.sym.slice_axis(x, axis=1, begin=1, end=3),
        lambda x: mx.sym.Concat(*mx.sym.split(x, num_outputs=2, axis=1)),
        lambda x: (x + 1.0) * 3.0 - 2.0,
        lambda x: mx.sym.Pad(x, mode="edge", pad_width=(0, 0, 0, 0, 1, 1, 1, 1)),
        lambda x: mx.sym.UpSampling(x, scale=2, sample_type="nearest"),
        lambda x: mx.sym.Deconvolution(x, num_filter=5, kernel=(2, 2), stride=(2, 2), name="up"),
        lambda x: mx.sym.reshape(
            mx.sym.swapaxes(mx.sym.reshape(x, shape=(0, -4, 2, -1, -2)), dim1=1, dim2=2), shape=(0, -3, -2)
        ),
        lambda x: mx.sym.Convolution(x, num_filter=8, kernel=(1, 1), num_group=4, name="multiplied"),
        lambda x: mx.sym.Convolution(x, num_filter=6, kernel=(1, 1), num_group=2, name="grouped"),
        lambda x: mx.sym.hard_sigmoid(x) * x,
        lambda x: mx.sym.transpose(mx.sym.transpose(x, axes=(0, 2, 3, 1)), axes=(0, 3, 1, 2)),
        lambda x: mx.sym.sum(mx.sym.expand_dims(x, axis=1), axis=1),
    ],
)
def test_operators_that_pass_channels_on_can_be_cut(make):
    net = built(layers_around(make), (3, 8, 8))
    assert "conv" in net.widths
    x = images(net)
    for each in (net, with_gates(net)):
        for fraction in (0.5, 0.0):
            keep = random_keep(each, fraction)
            small, widths = shrink(each, keep), {g: len(k) for g, k in keep.items()}
            assert difference(blocks.predict(small, x), blocks.predict(silence(each, keep), x)) < 1e-5
            assert small.widths == widths and [g.name for g in small.groups] == [g.name for g in each.groups]
            assert small.shapes == files.node_shapes(small, (3, 8, 8))
            assert macs(each)(widths) == macs(small)(small.widths)
            assert resized(each, widths).shapes == resized(small, widths).shapes


def test_graphs_with_several_outputs_and_secondary_ones():
    x = mx.sym.Convolution(mx.sym.var("data"), num_filter=6, kernel=(3, 3), name="conv")
    halves = mx.sym.split(mx.sym.relu(x), num_outputs=2, axis=1, name="halves")
    first, second = (
        mx.sym.FullyConnected(half, num_hidden=3, name=f"dense{k}", flatten=True) for k, half in enumerate(halves)
    )
    net = built(mx.sym.Group([first, second]), (3, 8, 8))
    assert net.widths == {"conv": 3}, "the halves have to stay equal"
    keep, x = {"conv": np.array([0, 2])}, images(net)
    expected = blocks.predict(silence(net, keep), x)
    assert expected.shape == (3, 6)
    assert difference(blocks.predict(shrink(net, keep), x), expected) < 1e-5


def test_repeated_names_are_told_apart():
    x = mx.sym.var("data")
    nodes, _ = parse_nodes(mx.sym.relu(mx.sym.relu(mx.sym.relu(x, name="r"), name="r_1"), name="r").tojson())
    assert [n.name for n in nodes] == ["data", "r", "r_1", "r_2"]


@pytest.mark.parametrize(
    "damage, part",
    [
        (lambda nodes, heads: nodes[1]["inputs"][0].__setitem__(1, 7), "node 'r' reads output 7 of node 'data', .* 1$"),
        (lambda nodes, heads: nodes[-1]["inputs"][0].__setitem__(1, 2), "node 'n' reads output 2 of node 's', .* 2$"),
        (lambda nodes, heads: heads[0].__setitem__(1, 1), "the network's output reads output 1 of node 'n', .* 1$"),
        (lambda nodes, heads: heads[0].__setitem__(0, 99), "output 0 of node 99, which no earlier node has"),
        (lambda nodes, heads: nodes[2]["inputs"][0].__setitem__(0, 3), "node 's' reads output 0 of node 3, which no"),
        (lambda nodes, heads: nodes[1].update(subgraphs=[{"nodes": nodes[:1], "heads": [[0, 4, 0]]}]), "output 4 of"),
    ],
)
def test_outputs_that_no_node_has_are_found_before_mxnet_reads_past_them(damage, part, tmp_path):
    halves = mx.sym.split(mx.sym.relu(mx.sym.var("data"), name="r"), num_outputs=2, name="s")
    text = mx.sym.BatchNorm(halves[1], name="n").tojson()
    files.check_outputs(text)
    graph = json.loads(text)
    damage(graph["nodes"], graph["heads"])
    (tmp_path / "net-symbol.json").write_text(json.dumps(graph))
    with pytest.raises(UserError, match="net-symbol.json.*" + part) as raised:  # not `load`, which could end the tests
        files.symbol_text(tmp_path / "net-symbol.json")
    assert raised.value.key == "symbol.format"


# ---- silence and removal ------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_masked_and_shrunk_agree_where_no_border_matters(name):
    net = centre_taps(random_network(name))
    keep = random_keep(net)
    small = shrink(net, keep)
    x = images(net)
    assert difference(blocks.predict(small, x), blocks.predict(silence(net, keep), x)) < 1e-5
    assert small.widths == {g: len(keep[g]) for g in net.widths}
    # The graph's own shapes, kept up by hand, are those that MXNet infers for it.
    assert small.shapes == files.node_shapes(small, small.input_shape)


@pytest.mark.parametrize("name", ["mobilenet1.0", pytest.param("mobilenetv2_1.0", marks=pytest.mark.slow)])
def test_mobilenets_have_no_border_error(name):
    # Only depthwise convs are padded, and these pass dropped channels on to a norm of their own group.
    net = random_network(name)
    keep, x = random_keep(net), images(net)
    assert difference(blocks.predict(shrink(net, keep), x), blocks.predict(silence(net, keep), x)) < 1e-5


def silent(net, keep):
    """The masked network with the constants of its dropped channels taken away, as a careless removal does."""
    net = silence(net, keep)
    arrays = {}
    for g in net.groups:
        for norm in g.norms:
            name = net.norm_arrays(norm)[1]
            arrays[name] = np.where(np.isin(np.arange(g.size), keep[g.name]), net.arrays[name], 0).astype(np.float32)
    return net.with_arrays(arrays)


@pytest.mark.slow
@pytest.mark.parametrize("name, bound", [("cifar_resnet20_v1", 0.25), ("resnet18_v1b_0.89", 0.6)])
def test_border_error_of_an_ordinary_resnet(name, bound):
    # Half of the channels at random, shifts of the size of the scales, maps of 2x2 to 16x16: the worst case. It is
    # measured against the largest output, and is what is left of the error that losing the constants would make.
    net = random_network(name)
    keep, x = random_keep(net), images(net)
    masked = blocks.predict(silence(net, keep), x)
    border = difference(blocks.predict(shrink(net, keep), x), masked)
    lost = difference(blocks.predict(silent(net, keep), x), masked)
    assert 1e-5 < border < bound
    assert border < 0.7 * lost


def test_border_error_is_at_the_border_only(tmp_path):
    x = mx.sym.var("data")
    for i in range(3):
        x = mx.sym.Convolution(x, num_filter=8, kernel=(3, 3), pad=(1, 1), no_bias=True, name=f"conv{i}")
        x = mx.sym.BatchNorm(x, fix_gamma=False, name=f"norm{i}")
        x = mx.sym.relu(x, name=f"relu{i}") if i < 2 else x
    net = from_symbol(x, drawn(x, (3, 16, 16)), tmp_path, (3, 16, 16))
    assert list(net.widths) == ["conv0", "conv1"]  # the last one is the output
    keep, x = random_keep(net), images(net)
    masked = blocks.predict(silence(net, keep), x)
    error = np.abs(blocks.predict(shrink(net, keep), x) - masked) / np.abs(masked).max()
    # conv1 and conv2 read dropped constants: two pixels of reach.
    assert error[:, :, 2:-2, 2:-2].max() < 1e-5
    assert error[:, :, 0, 0].max() > 1e-2


@pytest.mark.parametrize("activation", ["relu", "sigmoid", "tanh", "softrelu", "leaky", "relu6"])
def test_constants_pass_through_every_known_activation(activation, tmp_path):
    act = {
        "leaky": lambda x: mx.sym.LeakyReLU(x, act_type="leaky", slope=0.2),
        "relu6": lambda x: mx.sym.clip(x, 0, 6),
    }.get(activation, lambda x: mx.sym.Activation(x, act_type=activation))
    x = mx.sym.Convolution(mx.sym.var("data"), num_filter=6, kernel=(3, 3), no_bias=True, name="conv0")
    x = act(mx.sym.BatchNorm(x, fix_gamma=False, name="norm0"))
    # No bias and no norm behind this one: removal has to add a bias, ahead of the activation.
    x = act(mx.sym.Convolution(x, num_filter=5, kernel=(1, 1), no_bias=True, name="conv1"))
    x = mx.sym.Dropout(mx.sym.Pooling(x, kernel=(2, 2), stride=(2, 2), pool_type="avg"))
    x = mx.sym.FullyConnected(mx.sym.Flatten(x), num_hidden=3, no_bias=True, name="dense")
    net = from_symbol(x, drawn(x, (3, 8, 8)), tmp_path, (3, 8, 8))
    keep, x = {"conv0": np.array([1, 4]), "conv1": np.array([0, 2, 3])}, images(net)
    small = shrink(net, keep)
    assert difference(blocks.predict(small, x), blocks.predict(silence(net, keep), x)) < 1e-5
    assert small.bias("conv1") is not None and net.bias("conv1") is None
    assert small.arrays["conv1_weight"].shape == (3, 2, 1, 1)
    assert small.arrays["dense_weight"].shape == (3, 3 * 9)


def test_removal_keeps_its_argument_and_can_be_repeated():
    net = centre_taps(random_network("cifar_resnet20_v1"))
    before = {k: v.copy() for k, v in net.arrays.items()}
    first = random_keep(net, 0.6)
    once = shrink(net, first)
    second = random_keep(once, 0.5, seed=1)
    both = {g: first[g][second[g]] for g in first}
    x = images(net)
    assert difference(blocks.predict(shrink(once, second), x), blocks.predict(silence(net, both), x)) < 1e-5
    assert all(np.array_equal(net.arrays[k], v) for k, v in before.items())
    assert net.nodes == random_network("cifar_resnet20_v1").nodes
    same = shrink(net, {g.name: np.arange(g.size) for g in net.groups})
    assert all(np.array_equal(same.arrays[k], v) for k, v in before.items())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cifar_resnet20_v1", "mobilenetv2_1.0", "resnet18_v2"])
def test_one_channel_a_group_is_the_least(name):
    net = centre_taps(random_network(name))
    keep = random_keep(net, 0.0)
    assert set(map(len, keep.values())) == {1}
    small, x = shrink(net, keep), images(net)
    assert np.abs(blocks.predict(small, x) - blocks.predict(silence(net, keep), x)).max() < 1e-4
    with pytest.raises(ValueError, match="would be emptied"):
        shrink(net, {**keep, list(keep)[0]: np.array([], int)})


def test_with_arrays_holds_shapes():
    net = random_network("cifar_resnet20_v1")
    name = net.weight("conv0_fwd")
    with pytest.raises(ValueError, match=name):
        net.with_arrays({name: np.zeros(3, np.float32)})


# ---- rescaling and masks for bare layers ------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_rescaling_keeps_the_function_and_gives_unit_norms(name):
    net = with_gates(random_network(name))
    scaled, x = rescale(net), images(net)
    assert difference(blocks.predict(scaled, x), blocks.predict(net, x)) < 1e-5
    read = np.zeros(net.streams.n, bool)
    for streams in net.streams.readers.values():
        read[streams] = True
    free = read & ~net.streams.held
    np.testing.assert_allclose(stream_norms(scaled)[free], 1, rtol=1e-5)
    groups = {g.name for g in net.groups if free[np.isin(net.streams.unit, g.start + np.arange(g.size))].any()}
    # Everywhere but ahead of relu6 (MobileNet v2), and where a norm reads what a gate makes (CIFAR v2).
    if name.startswith("mobilenetv2"):
        assert groups == {
            g.name for g in net.groups if "linearbottleneck" in g.name and g.consumers and not g.depthwise
        }
    else:
        assert groups == {g.name for g in net.groups} - ({"conv0", "stage2_conv1"} if name.endswith("20_v2") else set())


def test_reader_norms_are_those_of_the_weights(tmp_path):
    net = random_network("resnet18_v1b_0.89")
    group = next(g for g in net.groups if g.name == "layers2_conv1")
    slow = sum((net.arrays[net.weight(r)][:, 3].astype(np.float64) ** 2).sum() for r in group.consumers)
    stream = np.flatnonzero(net.streams.unit == group.start + 3)
    np.testing.assert_allclose(stream_norms(net)[stream].sum(), slow)
    x = mx.sym.Convolution(mx.sym.var("data"), num_filter=6, kernel=(3, 3), name="conv")
    x = mx.sym.FullyConnected(x, num_hidden=3, name="dense")  # reads 6 channels of 2x2 each
    net = from_symbol(x, drawn(x, (3, 4, 4)), tmp_path, (3, 4, 4))
    slow = (net.arrays["dense_weight"][:, 4 * 5 : 4 * 6].astype(np.float64) ** 2).sum()
    np.testing.assert_allclose(squared_input_norms(net, "dense").reshape(6, 4).sum(1)[5], slow)


def test_what_arrives_in_a_residual_stage():
    net = random_network("resnet18_v1b")
    arriving = variances(net)

    def at(layer, *norms):
        found = arriving[net.nodes[net.index[layer]].inputs[0]].reshape(-1)
        np.testing.assert_allclose(found, sum(net.arrays[f"{n}_gamma"].astype(float) ** 2 for n in norms))

    # The first block reads the stem alone, the next stage all three sources.
    at("layers1_conv0_fwd", "batchnorm0")
    at("layers1_conv2_fwd", "batchnorm0", "layers1_batchnorm1")
    at("layers2_conv0_fwd", "batchnorm0", "layers1_batchnorm1", "layers1_batchnorm3")


@pytest.mark.slow
def test_masks_for_bare_layers_keep_the_function_and_fold_away(tmp_path):
    net = random_network("vgg16_bn")
    masked, x = with_gates(net), images(net)
    expected = blocks.predict(net, x)
    assert [g.norms for g in masked.groups][-2:] == [("dense0_gate_fwd",), ("dense1_gate_fwd",)]
    assert difference(blocks.predict(masked, x), expected) < 1e-6
    folded = fold_gates(masked)
    assert folded.nodes == net.nodes and folded.shapes == net.shapes and set(folded.arrays) == set(net.arrays)

    rng = np.random.default_rng(0)
    value = rng.uniform(0.5, 2, masked.arrays["dense0_gate"].shape).astype(np.float32)
    masked = masked.with_arrays({"dense0_gate": value})
    expected = blocks.predict(masked, x)
    assert difference(blocks.predict(fold_gates(masked), x), expected) < 1e-5
    keep = random_keep(masked, 0.25)
    small = shrink(centre_taps(masked), keep)
    assert difference(blocks.predict(small, x), blocks.predict(silence(centre_taps(masked), keep), x)) < 1e-5
    files.save(small, tmp_path / "masked")
    again = files.load(tmp_path / "masked")
    assert again.widths == small.widths and again.shapes == small.shapes
    assert np.array_equal(blocks.predict(again, x), blocks.predict(small, x))
    assert difference(blocks.predict(fold_gates(again), x), blocks.predict(small, x)) < 1e-5


def test_a_network_with_norms_everywhere_gets_no_masks():
    net = random_network("cifar_resnet20_v1")
    assert with_gates(net).nodes == net.nodes


def test_literals_of_attributes():
    node = Node("Convolution", "c", {"kernel": "(3, 3)", "no_bias": "True", "layout": "NCHW"})
    assert (node.literal("kernel"), node.literal("no_bias"), node.literal("layout"), node.literal("pad", 0)) == (
        (3, 3),
        True,
        "NCHW",
        0,
    )


# ---- the ends of residual branches ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "resnet18_v1",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in (
                *("resnet18_v1b_0.89", "resnet50_v1d_0.48", "resnet50_v1"),
                *("resnet50_v1b", "resnet50_v1d", "resnet101_v1d"),
            )
        ),
    ],
)
def test_last_gamma_zero_is_gluoncvs(name):
    """The same scales are zero as under GluonCV's own `last_gamma`, and nothing else has changed."""
    plain = name.split("_0.")[0]  # the PruneNets take no such argument
    net = zoo.from_gluoncv(name, (3, 32, 32), seed=0)
    zeroed = with_zero_residuals(net)
    ours = {k for k in net.arrays if not np.array_equal(net.arrays[k], zeroed.arrays[k])}
    assert all((zeroed.arrays[k] == 0).all() and k.endswith("gamma") for k in ours)
    if plain == "resnet18_v1b":  # whose basic blocks ignore `last_gamma`: each one's second batch norm
        theirs = {f"layers{stage}_batchnorm{n}_gamma" for stage in (1, 2, 3, 4) for n in (1, 3)}
    else:
        block = get_model(plain, last_gamma=True)
        block.initialize()
        block(mx.nd.zeros((1, 3, 32, 32)))
        theirs = {
            k[len(block.prefix) :]
            for k, p in block.collect_params().items()
            if k.endswith("gamma") and (p.data().asnumpy() == 0).all()
        }
    assert ours == theirs


@pytest.mark.slow
def test_zero_residuals_make_blocks_their_shortcuts():
    """With all of a stage's branches silent, what arrives at the classifier comes through the shortcuts alone."""
    net = random_network("cifar_resnet20_v1")
    zeroed = with_zero_residuals(net)
    betas = {net.norm_arrays(n)[1] for n in residual_norms(net)}
    silent = zeroed.with_arrays({k: np.zeros_like(net.arrays[k]) for k in betas})
    other = silent.with_arrays(
        {
            net.weight(n.name): net.arrays[net.weight(n.name)] * 3
            for n in net.nodes
            if n.op == "Convolution" and n.name.startswith("stage") and net.index[n.name] not in _shortcuts(net)
        }
    )
    np.testing.assert_array_equal(blocks.predict(silent, images(net)), blocks.predict(other, images(net)))
    assert difference(blocks.predict(silent, images(net)), blocks.predict(net, images(net))) > 1e-2


def _shortcuts(net) -> set:
    """Convs of 1x1, which in CIFAR's ResNets are those of the shortcuts."""
    return {i for i, n in enumerate(net.nodes) if n.op == "Convolution" and n.literal("kernel") == (1, 1)}


@pytest.mark.parametrize("name", ["vgg11_bn", "resnet18_v2"])
def test_networks_without_a_norm_at_the_end_of_a_branch(name):
    net = shape_only(name)
    assert residual_norms(net) == ()
    with pytest.raises(UserError, match=f"network '{name}': no residual branch ends in a batch norm"):
        with_zero_residuals(net)


@pytest.mark.slow
def test_new_weights_are_drawn_as_those_of_an_untrained_network():
    """Against GluonCV's own initialisation: spread of every weight, norms as untrained; the widths stay."""
    untrained = zoo.from_gluoncv("cifar_resnet20_v1", (3, 32, 32), 10, seed=3)
    rng = np.random.default_rng(0)
    trained = untrained.with_arrays({k: rng.normal(size=v.shape).astype("f") for k, v in untrained.arrays.items()})
    new, other = redrawn(trained, 0), redrawn(trained, 1)
    for name, value in untrained.arrays.items():
        assert new.arrays[name].shape == value.shape and new.arrays[name].dtype == np.float32
        if name.endswith("weight"):
            assert new.arrays[name].std() == pytest.approx(value.std(), rel=0.05 if value.size > 5000 else 0.2)
            assert abs(new.arrays[name].mean()) < value.std() / 10
            assert not np.array_equal(new.arrays[name], other.arrays[name])
        else:
            np.testing.assert_array_equal(new.arrays[name], value)
    assert all(np.array_equal(redrawn(trained, 0).arrays[name], value) for name, value in new.arrays.items())

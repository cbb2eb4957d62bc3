"""Rewritten blocks: against slow constructions of the same function, and what else has to work on them."""

from __future__ import annotations

from dataclasses import replace

import mxnet as mx
import numpy as np
import pytest
from networks import built, difference, images, random_keep, random_network

from gcp.backend import export, files
from gcp.backend.blocks import predict
from gcp.cost.analytic import macs
from gcp.errors import UserError
from gcp.graph.channels import is_norm
from gcp.graph.network import residual_branches
from gcp.graph.rewrites import depthwise_to_full, drop_block, droppable, expansions, fuse_expand, resize_kernel
from gcp.graph.surgery import shrink, silence


@pytest.fixture(scope="module")
def net():
    return random_network("mobilenetv2_0.25", (3, 32, 32), 5)


def without_inner_activation(net, block):
    """The network with the expansion's activation as an identity, and its norm's constant at zero.

    A constant between the two meets zeros at padded borders, where one kernel cannot tell them from the rest.
    """
    nodes, arrays = list(net.nodes), {}
    at = net.nodes[block.depthwise].inputs[0][0]
    while at != block.expand:
        node = nodes[at]
        if is_norm(net, at):
            mean, shift = node.inputs[3][0], node.inputs[2][0]
            arrays |= {net.nodes[j].name: np.zeros_like(net.arrays[net.nodes[j].name]) for j in (mean, shift)}
        else:
            nodes[at] = replace(node, op="identity", attrs={})
        at = node.inputs[0][0]
    return replace(net.with_arrays(arrays), nodes=tuple(nodes)).with_arrays({})


def test_the_blocks_of_mobilenetv2_are_found(net):
    """All but the first, whose depthwise convolution reads the stem."""
    found = expansions(net)
    n_depthwise = sum(node.op == "Convolution" and int(node.literal("num_group", 1)) > 1 for node in net.nodes)
    assert len(found) == n_depthwise - 1 == 16
    assert all(net.nodes[block.norm].op == "BatchNorm" for block in found.values())
    assert expansions(random_network("resnet18_v1b")) == {}
    # MobileNet's depthwise convolutions read 1x1 convolutions too, and each is such a block.
    assert len(expansions(random_network("mobilenet0.25"))) == 12  # its first one reads the stem


@pytest.mark.slow
def test_a_fused_expansion_is_both_convolutions_in_a_row(net):
    for name in list(expansions(net))[2:8:2]:
        block = expansions(net)[name]
        plain = without_inner_activation(net, block)
        fused = fuse_expand(plain, name)
        assert difference(predict(plain, images(net)), predict(fused, images(net))) < 1e-4
        node = fused.nodes[fused.index[net.nodes[block.expand].name]]
        assert int(node.literal("num_group", 1)) == 1 and tuple(node.literal("kernel")) == (3, 3)
        assert name not in fused.index and fused.widths == net.widths  # groups keep their names
        n_nodes = sum(node.op != "null" for node in net.nodes) - sum(node.op != "null" for node in fused.nodes)
        assert n_nodes == 3  # the convolution, its norm and its activation


def test_the_inner_norms_constant_moves_on():
    """Without padding nothing is lost: into the next norm's mean, a bias that is there, or a new one."""
    for after in ("norm", "bias", "nothing"):
        x = mx.sym.Convolution(mx.sym.var("data"), num_filter=6, kernel=(1, 1), no_bias=after != "bias", name="expand")
        x = mx.sym.BatchNorm(x, fix_gamma=False, name="inner")
        x = mx.sym.Convolution(x, num_filter=6, num_group=6, kernel=(3, 3), no_bias=after != "bias", name="depthwise")
        x = mx.sym.relu(mx.sym.BatchNorm(x, fix_gamma=False, name="outer") if after == "norm" else x)
        net = built(mx.sym.FullyConnected(x, num_hidden=2, name="last"), (3, 6, 6))
        fused = fuse_expand(net, "depthwise")
        assert "inner_gamma" not in fused.arrays and ("expand_bias" in fused.arrays) == (after != "norm")
        assert difference(predict(net, images(net)), predict(fused, images(net))) < 1e-5


@pytest.mark.slow
def test_a_larger_kernel_says_the_same_and_a_smaller_one_has_the_middle(net):
    for layer in (list(expansions(net))[2], net.nodes[expansions(net)[list(expansions(net))[2]].expand].name):
        size = net.arrays[net.weight(layer)].shape[-1]
        larger = resize_kernel(net, layer, size + 2)
        assert larger.arrays[larger.weight(layer)].shape[2:] == (size + 2, size + 2)
        assert difference(predict(net, images(net)), predict(larger, images(net))) < 1e-5
        again = resize_kernel(larger, layer, size)
        assert np.array_equal(again.arrays[again.weight(layer)], net.arrays[net.weight(layer)])
        assert again.shapes == net.shapes
    with pytest.raises(UserError, match="nowhere"):
        resize_kernel(net, "nowhere", 5)
    for wrong in (2, 0, -1):
        with pytest.raises(UserError) as error:
            resize_kernel(net, list(expansions(net))[2], wrong)
        assert error.value.key == "rewrite.kernel"


def test_a_dilated_kernel_grows_with_its_padding():
    x = mx.sym.Convolution(mx.sym.var("data"), num_filter=4, kernel=(3, 3), dilate=(2, 2), pad=(2, 2), name="conv")
    net = built(mx.sym.FullyConnected(x, num_hidden=2, name="last"), (3, 9, 9))
    larger = resize_kernel(net, "conv", 5)
    assert larger.nodes[larger.index["conv"]].literal("pad") == (4, 4)
    assert difference(predict(net, images(net)), predict(larger, images(net))) < 1e-5


def test_a_weight_that_two_layers_read_keeps_its_kernel():
    weight, image = mx.sym.var("weight"), mx.sym.var("data")
    how = {"num_filter": 3, "kernel": (3, 3), "pad": (1, 1), "no_bias": True}
    x = mx.sym.Convolution(image, weight, name="one", **how) + mx.sym.Convolution(image, weight, name="two", **how)
    net = built(mx.sym.FullyConnected(x, num_hidden=2, name="last"), (3, 6, 6))
    with pytest.raises(UserError, match="'one' cannot be rewritten, because 'two' reads its weight too") as error:
        resize_kernel(net, "one", 5)
    assert error.value.key == "rewrite.shared" and "\n" not in str(error.value)


@pytest.mark.slow
def test_a_full_convolution_in_a_depthwise_ones_place_says_the_same(net):
    name = list(expansions(net))[3]
    full = depthwise_to_full(net, name)
    assert difference(predict(net, images(net)), predict(full, images(net))) < 1e-5
    assert len(full.groups) == len(net.groups) + 1 and macs(full)(full.widths) > macs(net)(net.widths)
    x = mx.sym.Convolution(mx.sym.var("data"), num_filter=4, kernel=(1, 1), name="conv")
    x = mx.sym.Convolution(x, num_filter=8, num_group=4, kernel=(3, 3), name="two each")
    twice = built(mx.sym.FullyConnected(x, num_hidden=2, name="last"), (3, 6, 6))
    found = depthwise_to_full(twice, "two each")
    assert difference(predict(twice, images(twice)), predict(found, images(twice))) < 1e-5


@pytest.mark.slow
def test_a_dropped_block_is_one_whose_branch_says_nothing(net):
    for of in (net, random_network("cifar_resnet20_v1")):
        names = list(droppable(of))
        assert 0 < len(names) < len(residual_branches(of)) or len(names) == len(residual_branches(of)) > 3
        for name in names[:2]:
            i, shortcut = droppable(of)[name]
            branch = next(t for t in of.nodes[i].inputs if t != shortcut)
            assert is_norm(of, branch[0])
            scale, shift = of.norm_arrays(of.nodes[branch[0]].name)
            silent = of.with_arrays({key: np.zeros_like(of.arrays[key]) for key in (scale, shift)})
            small = drop_block(of, name)
            assert difference(predict(silent, images(of)), predict(small, images(of))) < 1e-5
            assert len(small.arrays) < len(of.arrays) and name not in small.index
            assert macs(small)(small.widths) < macs(of)(of.widths)


def test_projection_shortcuts_stay():
    """Of ResNet-20's nine blocks, those that begin the second and the third stage have a convolution beside them."""
    assert len(droppable(random_network("cifar_resnet20_v1"))) == 7


def rewritten(net):
    """All three on one network."""
    names = list(expansions(net))
    other = drop_block(fuse_expand(net, names[1]), list(droppable(net))[-1])
    return depthwise_to_full(other, names[5])


@pytest.mark.slow
def test_a_rewritten_network_is_saved_and_pruned_like_any_other(net, tmp_path):
    other = rewritten(net)
    files.save(other, tmp_path / "other")
    again = files.load(tmp_path / "other")
    assert np.array_equal(predict(other, images(net)), predict(again, images(net)))
    keep = random_keep(other)
    error = difference(predict(silence(other, keep), images(net)), predict(shrink(other, keep), images(net)))
    border = difference(
        predict(silence(net, random_keep(net)), images(net)), predict(shrink(net, random_keep(net)), images(net))
    )
    assert error <= max(2 * border, 1e-4)  # zero-padded borders, as of the network that it came from


@pytest.mark.slow
def test_a_rewritten_network_leaves_as_onnx_and_as_int8(net, tmp_path):
    other, x = rewritten(net), images(net, 8)
    path = export.to_onnx(other, tmp_path / "other.onnx")
    assert difference(predict(other, x), export.onnx_outputs(path, 1)(x)) < 1e-5
    small = export.quantized(other, [(x, np.zeros(len(x)), len(x))])
    assert export.layers(small)[0] and np.isfinite(export.outputs(small)(x)).all()


@pytest.mark.slow
@pytest.mark.parametrize("rewrite", [fuse_expand, depthwise_to_full, drop_block])
def test_what_is_not_there_is_named(net, rewrite):
    with pytest.raises(UserError, match="nowhere"):
        rewrite(net, "nowhere")
    with pytest.raises(UserError, match="none"):
        rewrite(random_network("alexnet", (3, 64, 64)), "nowhere")

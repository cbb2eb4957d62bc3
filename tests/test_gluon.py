"""From GluonCV to a network, to files in three forms, and back: the outputs stay the same."""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from pathlib import Path

import mxnet as mx
import numpy as np
import pytest
from gluoncv.model_zoo import get_model, model_store, pruned_resnet
from gluoncv.model_zoo.pruned_resnet.resnetv1b_pruned import prune_gluon_block
from mxnet import autograd
from networks import built, centre_taps, difference, images, random_keep, random_network, shape_only

from gcp.backend import blocks, files, zoo
from gcp.errors import UserError
from gcp.graph import network
from gcp.graph.surgery import shrink, silence

ROUND_TRIPS = ["resnet18_v1b_0.89", pytest.param("resnet50_v1d", marks=pytest.mark.slow), "cifar_resnet20_v1"]


@pytest.fixture(scope="module", params=ROUND_TRIPS)
def pruned(request):
    """A pruned network, images, and what it says to them."""
    net = random_network(request.param)
    small = shrink(net, random_keep(net, 0.4))
    x = images(small, 2)
    return small, x, blocks.predict(small, x)


def imported(symbol_path, params_path):
    """Plain MXNet's reading of a saved network."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return mx.gluon.SymbolBlock.imports(str(symbol_path), ["data"], str(params_path))


# ---- GluonCV -> network -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        *("cifar_resnet20_v2", "mobilenetv2_0.25"),
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("resnet50_v1d_0.11", "resnet18_v1", "resnet18_v2", "vgg16_bn")
        ),
    ],
)
def test_a_network_says_what_its_gluoncv_block_says(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        block = get_model(name, classes=1000 if "_0." in name else 5)
    block.initialize(mx.init.MSRAPrelu())
    x = np.random.default_rng(0).normal(size=(2, 3, 32, 32)).astype(np.float32)
    expected = block(mx.nd.array(x)).asnumpy()
    net = zoo.from_gluoncv(name, (3, 32, 32), expected.shape[1], seed=1)
    own = {k[len(block.prefix) :]: p.data().asnumpy() for k, p in block.collect_params().items()}
    # Batch norms without a scale hold ones, whatever their unused array says.
    own.update(
        {
            k: net.arrays[k]
            for k, v in net.arrays.items()
            if "batchnorm0_gamma" in k and "_v2" in name and v.shape == (3,)
        }
    )
    net = net.with_arrays(own)
    assert difference(blocks.predict(net, x), expected) < 1e-5
    assert (net.input_shape, net.n_classes, net.name) == ((3, 32, 32), expected.shape[1], name)


def test_names_do_not_depend_on_how_many_networks_came_before():
    first, second = (zoo.from_gluoncv("mobilenet1.0", (3, 32, 32)) for _ in range(2))
    assert first.nodes == second.nodes and first.widths == second.widths


def test_weights_are_drawn_by_the_seed():
    a, b, c = (zoo.from_gluoncv("cifar_resnet20_v1", (3, 16, 16), 4, seed=s).arrays for s in (1, 1, 2))
    assert all(np.array_equal(a[k], b[k]) for k in a)
    assert not np.array_equal(a["conv0_weight"], c["conv0_weight"])
    assert 0.5 < a["stage3_conv1_weight"].std() / np.sqrt(2 / (64 * 9)) < 2


@pytest.mark.parametrize("name, same", [("mobilenet1.0@0.25", "mobilenet0.25"), ("mobilenet0.25@2", "mobilenet0.5")])
def test_a_part_of_the_width_is_the_multiplier_that_mobilenets_have(name, same):
    ours, theirs = (zoo.open_network(n, (3, 32, 32), 10, seed=1) for n in (name, same))
    assert ours.nodes == theirs.nodes and ours.shapes == theirs.shapes and ours.widths == theirs.widths
    assert ours.name == name and zoo.default_input("mxnet:inceptionv3@0.5") == zoo.default_input("mxnet:inceptionv3")
    x = np.random.default_rng(0).normal(size=(2, 3, 32, 32)).astype(np.float32)
    moved = ours.with_arrays(theirs.arrays)
    assert np.array_equal(blocks.predict(moved, x), blocks.predict(theirs, x))


@pytest.mark.slow
def test_a_part_of_the_width_draws_its_weights_by_the_seed():
    a, b, c, d = (zoo.open_network("resnet18_v1b@0.25", (3, 32, 32), 10, seed=s).arrays for s in (1, 1, 2, None))
    assert all(np.array_equal(a[k], b[k]) for k in a) and not any(v.any() for v in d.values())
    assert a.keys() == c.keys() == d.keys() and not np.array_equal(a["conv0_weight"], c["conv0_weight"])
    assert a["layers4_conv1_weight"].shape == (128, 128, 3, 3)
    assert 0.5 < a["layers4_conv1_weight"].std() / np.sqrt(2 / (128 * 9)) < 2


@pytest.mark.slow
def test_a_part_of_the_width_keeps_constants():
    net = zoo.open_network("yolo3_mobilenet0.25_voc@0.5", (3, 64, 64), seed=1)
    whole = zoo.open_network("yolo3_mobilenet0.25_voc", (3, 64, 64), seed=1)
    kept = {re.sub(r"v3\d+_", "", k): v for k, v in net.arrays.items() if "anchor" in k or "offset" in k}
    meant = {re.sub(r"v3\d+_", "", k): v for k, v in whole.arrays.items() if "anchor" in k or "offset" in k}
    assert len(kept) == 6 and kept.keys() == meant.keys()
    assert all(np.array_equal(kept[k], meant[k]) and kept[k].any() for k in kept)


@pytest.mark.parametrize("part", ["", "x", "0", "-1", "nan", "inf", "4.01"])
def test_a_part_of_the_width_is_above_0_and_at_most_4(part):
    with pytest.raises(UserError, match="above 0 and at most 4"):
        zoo.open_network(f"resnet18_v1b@{part}")


def test_a_part_of_the_width_has_no_published_weights():
    with pytest.raises(UserError, match="full width only"):
        zoo.open_network("resnet18_v1b@0.5", pretrained=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18_v1b_0.89", "resnet50_v1d_0.11", "resnet101_v1d_0.73"])
def test_released_networks_take_any_number_of_classes(name):
    # GluonCV's own keep the dense weight of 1000 classes and cannot be run with another number.
    net = zoo.from_gluoncv(name, (3, 64, 64), 256)
    assert net.n_classes == 256 and net.arrays["dense0_weight"].shape[0] == 256
    assert net.widths == shape_only(name).widths


@pytest.mark.parametrize(
    "name, near",
    [
        ("resnet18_v1bb", "resnet18_v1b"),
        ("mobilnet1.0", "mobilenet1.0"),
        ("zzzzz", "neither a GluonCV network nor the prefix of a saved one"),
    ],
)
def test_an_unknown_name_gets_the_nearest(name, near):
    with pytest.raises(UserError, match=near):
        zoo.open_network(name)


@pytest.mark.parametrize(
    "name, shape",
    [
        ("vgg16_bn", (3, 16, 16)),
        ("resnet50_v1d", (3, 2, 2)),
        ("resnet18_v1b", (3, 0, 0)),
        ("resnet18_v1b_0.89", (1, 32, 32)),
    ],
)
def test_an_input_the_network_cannot_take(name, shape, capsys):
    with pytest.raises(UserError, match=f"'{name}' cannot take an input of {'x'.join(map(str, shape))}") as error:
        zoo.from_gluoncv(name, shape)
    assert "\n" not in str(error.value)
    assert capsys.readouterr().out == ""  # MXNet prints the arguments, which would spoil --json


@pytest.mark.parametrize("name", ["resnet50_v1b_gn", "siamrpn_alexnet_v2_otb15"])
def test_a_network_that_gives_no_graph(name):
    with pytest.raises(UserError, match=f"'{name}' has no graph"):
        zoo.from_gluoncv(name, (3, 64, 64))


# ---- files ------------------------------------------------------------------------------------------------------


def test_a_saved_network_loads_in_plain_mxnet(pruned, tmp_path):
    net, x, expected = pruned
    block = imported(*files.save(net, tmp_path / "deep" / "er.v1"))
    assert difference(block(mx.nd.array(x)).asnumpy(), expected) < 1e-6
    assert sorted(p.name for p in (tmp_path / "deep").iterdir()) == ["er.v1-0000.params", "er.v1-symbol.json"]


@pytest.mark.slow
def test_a_saved_network_loads_here(pruned, tmp_path):
    net, x, expected = pruned
    files.save(net, tmp_path / "net")
    for again in (files.load(tmp_path / "net"), zoo.open_network(str(tmp_path / "net-0000.params"))):
        assert np.array_equal(blocks.predict(again, x), expected)
        assert (again.nodes, again.shapes, again.outputs, again.name) == (net.nodes, net.shapes, net.outputs, net.name)
        assert again.groups == net.groups
        assert all(np.array_equal(again.arrays[k], v) for k, v in net.arrays.items())


def test_a_saved_network_loads_in_gluoncvs_pruned_form(pruned, tmp_path):
    net, x, expected = pruned
    json_path, params_path = zoo.save_gluoncv(net, tmp_path / "net")
    block = zoo._gluoncv_block(net.name, net.n_classes)
    shapes, params = json.loads(json_path.read_text(encoding="utf-8")), mx.nd.load(str(params_path))
    prune_gluon_block(block, block.name, shapes, params=params, pretrained=True)
    assert difference(block(mx.nd.array(x)).asnumpy(), expected) < 1e-6
    assert all(key.startswith("resnetv1d_") for key in shapes)


def test_gluoncvs_form_is_that_of_the_released_files(tmp_path):
    released = json.loads((Path(pruned_resnet.__file__).parent / "resnet50_v1d_8.8x.json").read_text())
    net = random_network("resnet50_v1d_0.11", n_classes=1000)
    json_path, _ = zoo.save_gluoncv(net, tmp_path / "net")
    written = json.loads(json_path.read_text(encoding="utf-8"))
    assert {k: v for k, v in released.items() if k in written} == written
    assert {k for k in released if k.endswith("_weight")} <= set(written)


@pytest.mark.parametrize(
    "name, said",
    [
        ("mobilenet1.0", "not one of GluonCV's version-1 ResNets"),
        ("resnet18_v2", "not one of GluonCV's version-1"),
        ("cifar_resnet20_v2", "not one of GluonCV's version-1"),
        ("vgg16_bn", "not one of GluonCV's version-1"),
        ("resnet50_v1", "conv 'stage1_conv0_fwd' has a bias"),
    ],
)
def test_networks_that_gluoncvs_form_cannot_hold(name, said, tmp_path):
    with pytest.raises(UserError) as error:
        zoo.save_gluoncv(shape_only(name, (3, 32, 32)), tmp_path / "net")
    assert said in str(error.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mobilenetv2_1.0", "resnet18_v2", "resnet18_v1b_0.89"])
def test_other_families_survive_files_and_a_second_pruning(name, tmp_path):
    net = centre_taps(random_network(name))
    small = shrink(net, random_keep(net, 0.5))
    block = imported(*files.save(small, tmp_path / "net"))
    again, x = files.load(tmp_path / "net"), images(small, 2)
    expected = blocks.predict(small, x)
    assert difference(block(mx.nd.array(x)).asnumpy(), expected) < 1e-6
    keep = random_keep(again, 0.5, seed=2)
    assert difference(blocks.predict(shrink(again, keep), x), blocks.predict(silence(small, keep), x)) < 1e-5


def test_gluons_own_export_is_read(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        block = get_model("cifar_resnet20_v1", classes=4)
    block.initialize()
    block.hybridize()
    x = np.random.default_rng(0).normal(size=(2, 3, 16, 16)).astype(np.float32)
    expected = block(mx.nd.array(x)).asnumpy()
    block.export(str(tmp_path / "net"))
    with pytest.raises(UserError, match="does not state its input shape"):
        files.load(tmp_path / "net")
    net = files.load(tmp_path / "net", (3, 16, 16))
    np.testing.assert_allclose(blocks.predict(net, x), expected, rtol=1e-4, atol=1e-6)
    assert len(net.groups) == 12


@pytest.fixture()
def saved(tmp_path):
    """A small saved network's two files."""
    return files.save(random_network("cifar_resnet20_v1"), tmp_path / "net")


def refused(prefix, *said, input_shape=None):
    with pytest.raises(UserError) as error:
        files.load(prefix, input_shape)
    assert "\n" not in str(error.value)
    for words in said:
        assert words in str(error.value)


@pytest.mark.parametrize("size", [0, 3, 8, 20, 24, 100, 5000, -300, -1])
def test_truncated_parameters(saved, size):
    saved[1].write_bytes(saved[1].read_bytes()[:size])
    refused(str(saved[0])[: -len("-symbol.json")], "net-0000.params")


@pytest.mark.parametrize("heads", [[[0, 0, 0]], [[0, 0]]])
def test_a_graph_whose_output_depends_on_a_part_of_it(saved, heads):
    saved[0].write_text(json.dumps({**json.loads(saved[0].read_text(encoding="utf-8")), "heads": heads}))
    refused(str(saved[0])[: -len("-symbol.json")], "no output depends on '")


@pytest.mark.parametrize("size", [0, 1, 50, 3000, -1])
def test_truncated_graph(saved, size):
    text = saved[0].read_text(encoding="utf-8").rstrip()
    saved[0].write_text(text[:size])
    refused(str(saved[0])[: -len("-symbol.json")], "net-symbol.json")


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "null",
        "3",
        "{}",
        '{"nodes": [], "heads": []}',
        '{"nodes": 1, "heads": [1]}',
        '{"nodes": [1], "heads": [[0, 0, 0]]}',
        '"nodes"',
        "\x00\x01",
        '{"nodes": [], "heads": [[0, 0, 0]], "arg_nodes": []}',
    ],
)
def test_a_graph_that_is_none(saved, text):
    saved[0].write_text(text)
    refused(str(saved[0])[: -len("-symbol.json")], "net")


def test_binary_rubbish(saved):
    rng = np.random.default_rng(0)
    saved[0].write_bytes(rng.bytes(500))
    refused(str(saved[0])[: -len("-symbol.json")], "net-symbol.json")
    saved = files.save(random_network("cifar_resnet20_v1"), str(saved[0])[: -len("-symbol.json")])
    saved[1].write_bytes(rng.bytes(500))
    refused(str(saved[0])[: -len("-symbol.json")], "net-0000.params")


@pytest.mark.parametrize("which", [0, 1])
def test_a_missing_half(saved, which):
    saved[which].unlink()
    refused(str(saved[0])[: -len("-symbol.json")], f"'{saved[which]}' is missing")


def test_parameters_of_another_network(saved, tmp_path):
    net = random_network("cifar_resnet20_v1")
    other = files.save(shrink(net, random_keep(net)), tmp_path / "other")
    saved[1].write_bytes(other[1].read_bytes())
    refused(tmp_path / "net", "has shape", "needs", "net-0000.params")
    mx.nd.save(str(saved[1]), {"arg:conv0_weight": mx.nd.zeros((16, 3, 3, 3))})
    refused(tmp_path / "net", "lacks", "does not belong to")
    mx.nd.save(str(saved[1]), [mx.nd.zeros((2,))])
    refused(tmp_path / "net", "arrays without names")
    arrays = {f"arg:{k}": mx.nd.array(v) for k, v in net.arrays.items()}
    mx.nd.save(str(saved[1]), {**arrays, "arg:stray": mx.nd.zeros((2,))})
    refused(tmp_path / "net", "holds 'stray'")


@pytest.mark.slow
def test_an_input_that_the_saved_network_cannot_take(tmp_path):
    files.save(random_network("resnet50_v1d_0.11"), tmp_path / "net")
    refused(tmp_path / "net", "cannot take an input of 3x2x2", input_shape=(3, 2, 2))
    refused(
        tmp_path / "net",
        "'conv0_weight' has shape (8, 3, 3, 3)",
        "(8, 1, 3, 3) for an input of 1x32x32",
        input_shape=(1, 32, 32),
    )


def test_a_failed_write_leaves_the_saved_network_as_it_was(saved, tmp_path, monkeypatch):
    before = [path.read_bytes() for path in saved]

    def full(*_):
        raise mx.MXNetError("Check failed: file write error")

    monkeypatch.setattr(mx.nd, "save", full)
    with pytest.raises((UserError, OSError)):
        files.save(random_network("cifar_resnet20_v1"), tmp_path / "net")
    assert [path.read_bytes() for path in saved] == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net-0000.params", "net-symbol.json"]


# ---- blocks -----------------------------------------------------------------------------------------------------


def test_a_block_gives_its_values_back():
    net = random_network("cifar_resnet20_v1")
    again = blocks.from_block(net, blocks.to_block(net))
    assert all(np.array_equal(again.arrays[k], v) for k, v in net.arrays.items())


@pytest.mark.slow
def test_frozen_statistics_stay_and_are_used_in_training():
    net, x = random_network("resnet18_v2"), mx.nd.array(images(random_network("resnet18_v2")))
    block = blocks.to_block(net, frozen_statistics=True)
    with autograd.record():
        y = block(x)
    y.backward()
    trained = y.asnumpy()
    assert difference(trained, blocks.predict(net, x.asnumpy())) < 1e-5
    assert all(np.array_equal(blocks.from_block(net, block).arrays[k], net.arrays[k]) for k in network.auxiliary(net))
    block = blocks.to_block(net)
    with autograd.record():
        y = block(x)
    y.backward()
    assert not np.allclose(y.asnumpy(), trained, atol=1e-2)
    after = blocks.from_block(net, block).arrays
    assert any(not np.array_equal(after[k], net.arrays[k]) for k in network.auxiliary(net))


@pytest.mark.slow
def test_only_what_is_trainable_gets_gradients():
    net = random_network("resnet18_v2")
    aux = network.auxiliary(net)
    held = {k for k, p in blocks.to_block(net).collect_params().items() if p.grad_req == "null"}
    assert held == aux | {"batchnorm0_gamma", "batchnorm0_beta"}
    chosen = {"batchnorm1_gamma", "dense0_weight"}
    block = blocks.to_block(net, trainable=chosen | {"batchnorm0_gamma"})
    assert {k for k, p in block.collect_params().items() if p.grad_req != "null"} == chosen


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize(
    "name, width",
    [
        ("cifar_resnet20_v1", None),
        pytest.param("resnet18_v1b", 16, marks=pytest.mark.slow),
        pytest.param("mobilenet1.0", None, marks=pytest.mark.slow),
        pytest.param("resnet18_v1b", None, marks=pytest.mark.slow),
        pytest.param("resnet18_v2", 48, marks=pytest.mark.slow),
    ],
)
def test_norm_and_relu_in_one_change_no_bit_of_training(name, width, frozen):
    net = random_network(name)
    if width is not None:
        net = shrink(net, {g.name: np.arange(min(width, g.size)) for g in net.groups})
    x = mx.nd.array(images(net, 4))

    def trained(fused: bool) -> tuple:
        block = blocks.to_block(net, frozen_statistics=frozen, fused=fused)
        graph = json.loads(block._cached_graph[1].tojson())
        assert any(n["op"] == blocks.NORM_RELU for n in graph["nodes"]) is fused
        with autograd.record():
            output = block(x)
        output.backward()
        mx.nd.waitall()
        values = {k: p.data().asnumpy() for k, p in block.collect_params().items()}
        return {k: p.grad().asnumpy() for k, p in block.collect_params().items() if p.grad_req != "null"}, values

    for one, two in zip(trained(True), trained(False)):
        assert one.keys() == two.keys()
        for key in one:
            np.testing.assert_array_equal(one[key], two[key], err_msg=key)


def test_which_norms_and_relus_become_one():
    net = shape_only("resnet50_v1b")
    pairs = {net.nodes[relu].name: net.nodes[norm].name for relu, norm in blocks._norms_before_relu(net)}
    # Stem, and two in each of 16 blocks but for the three whose second conv is strided; none behind an addition.
    assert len(pairs) == 1 + 2 * 16 - 3
    assert all("batchnorm" in norm and "relu" in relu for relu, norm in pairs.items())


@pytest.mark.slow
def test_a_new_output_layer(tmp_path):
    net = random_network("resnet18_v1b")
    files.save(net, tmp_path / "final")
    with pytest.raises(UserError, match="has 7 classes, 5 are needed; set model.new_head"):
        zoo.open_network(str(tmp_path / "final"), None, 5)
    new, same, other = (
        zoo.open_network(str(tmp_path / "final"), None, 5, seed=seed, new_head=True) for seed in (3, 3, 4)
    )
    assert new.n_classes == 5 and blocks.predict(new, images(net)).shape == (3, 5)
    head = {net.weight("dense0_fwd"), net.bias("dense0_fwd")}
    for name, value in new.arrays.items():
        if name not in head:
            assert np.array_equal(value, net.arrays[name])
        assert np.array_equal(value, same.arrays[name])
    weight = net.weight("dense0_fwd")
    assert new.arrays[weight].shape == (5, 512) and not np.array_equal(new.arrays[weight], other.arrays[weight])
    # Variance 2 / (1 + 0.25^2) over the mean of 512 inputs and 5 outputs, from 2560 draws.
    assert new.arrays[weight].std() == pytest.approx((2 / 1.0625 / 258.5) ** 0.5, rel=0.05)
    assert not new.arrays[net.bias("dense0_fwd")].any()
    files.save(new, tmp_path / "new")
    again = files.load(tmp_path / "new")
    assert np.array_equal(blocks.predict(again, images(net)), blocks.predict(new, images(net)))


def test_a_new_output_layer_needs_a_dense_one():
    with pytest.raises(UserError, match="only a dense output layer"):
        zoo.with_new_head(random_network("mobilenetv2_0.25"), 5, 0)


# ---- published weights from a file ------------------------------------------------------------------------------


@pytest.fixture
def published(tmp_path, monkeypatch):
    """A file of weights of resnet18_v1b_0.89 whose hash is, for this test, the one that GluonCV has published."""
    net = random_network("resnet18_v1b_0.89", n_classes=1000)
    _, path = zoo.save_gluoncv(net, tmp_path / "any name")
    sha1 = hashlib.sha1(path.read_bytes()).hexdigest()
    monkeypatch.setitem(model_store._model_sha1, "resnet18_v1b_2.6x", sha1)
    return net, path, sha1


@pytest.mark.slow
@pytest.mark.parametrize("home", [False, True])
def test_weights_come_from_a_file(published, tmp_path, monkeypatch, home):
    net, path, _ = published
    if home:  # where GluonCV would look in place of any other folder
        monkeypatch.setenv("MXNET_HOME", str(tmp_path / "home"))
    read = zoo.open_network("resnet18_v1b_0.89", (3, 32, 32), None, True, weights=path)
    assert read.arrays.keys() == net.arrays.keys()
    for name, value in net.arrays.items():
        np.testing.assert_array_equal(read.arrays[name], value, err_msg=name)
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize(
    "name, head",
    [
        ("cifar_resnet20_v1", "dense"),
        pytest.param("resnet18_v1b", "dense", marks=pytest.mark.slow),
        pytest.param("mobilenetv2_0.25", "output", marks=pytest.mark.slow),
    ],
)
def test_weights_from_a_file_for_other_classes(tmp_path, monkeypatch, name, head):
    """All of the file's but the output layer's, which is drawn from the seed."""
    path, block = tmp_path / "w.params", get_model(name)
    block.initialize(mx.init.Xavier())
    block(mx.nd.zeros((1, 3, 32, 32)))
    block.save_parameters(str(path))
    monkeypatch.setitem(model_store._model_sha1, name, hashlib.sha1(path.read_bytes()).hexdigest())
    one, two, other = (zoo.open_network(name, (3, 32, 32), 4, True, seed, path) for seed in (1, 1, 2))
    own = {k[len(block.prefix) :]: p.data().asnumpy() for k, p in block.collect_params().items()}
    assert one.n_classes == 4
    for k, v in one.arrays.items():
        assert np.array_equal(v, own[k]) != k.startswith(head), k
        assert np.array_equal(v, two.arrays[k])
    assert any(not np.array_equal(v, other.arrays[k]) for k, v in one.arrays.items())


def test_other_weights_are_refused(tmp_path):
    path, sha1 = tmp_path / "any name.params", model_store._model_sha1["resnet18_v1b_2.6x"]
    path.write_bytes(b"x")
    with pytest.raises(UserError) as caught:
        zoo.open_network("resnet18_v1b_0.89", (3, 32, 32), None, True, weights=path)
    for part in (
        f"'{path}' is not resnet18_v1b_2.6x-{sha1[:8]}.params, whose sha1 is {sha1}",
        f"amazonaws.com/gluon/models/resnet18_v1b_2.6x-{sha1[:8]}.zip",
    ):
        assert part in str(caught.value)
    with pytest.raises(
        UserError, match="absent.params': the file with the weights of .* does not exist: download http"
    ):
        zoo.open_network("resnet18_v1b_0.89", (3, 32, 32), None, True, weights=tmp_path / "absent.params")
    with pytest.raises(UserError, match="^~nobody-here/a.params: there is no such user"):
        zoo.open_network("resnet18_v1b_0.89", (3, 32, 32), None, True, weights="~nobody-here/a.params")
    with pytest.raises(UserError, match="no weights of 'nasnet_4_1056' are published"):
        zoo.open_network("nasnet_4_1056", (3, 331, 331), None, True, weights=path)


@pytest.mark.parametrize(
    "name, file_name",
    [
        ("resnet18_v1b", "resnet18_v1b-2d9d980c"),
        ("resnet50_v1d", "resnet50_v1d-117a384e"),
        ("resnet101_v1d", "resnet101_v1d-1b2b825f"),
    ],
)
def test_without_a_network_the_message_says_which_file_to_get(monkeypatch, name, file_name):
    def unreachable(name, **how):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(zoo, "get_model", unreachable)
    with pytest.raises(UserError) as caught:
        zoo.open_network(name, (3, 224, 224), None, True)
    assert str(caught.value) == (
        f"the published weights of '{name}' cannot be obtained (no route): download https://apache-mxnet.s3-accelerate."
        f"dualstack.amazonaws.com/gluon/models/{file_name}.zip where there is internet access, unzip it, and put "
        f"{file_name}.params into ~/.mxnet/models (or anywhere, with model.weights set to its path)"
    )


# ---- what is trained --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "size, kernel, stride, pad, groups, left",
    [
        ((1, 1), (3, 3), (1, 1), (1, 1), 1, "(1, 1)"),
        ((1, 1), (3, 3), (2, 2), (1, 1), 8, "(1, 1)"),  # depthwise
        ((2, 2), (3, 3), (2, 2), (1, 1), 2, "(2, 2)"),
        ((2, 2), (7, 7), (1, 1), (3, 3), 1, "(3, 3)"),
        ((1, 4), (3, 5), (1, 1), (1, 2), 1, "(1, 5)"),
        ((2, 2), (3, 3), (1, 1), (1, 1), 1, "(3, 3)"),  # all of it is read
        ((2, 3), (5, 5), (2, 2), (2, 2), 1, "(2, 5)"),
        ((4, 4), (1, 1), (2, 2), (0, 0), 1, "(1, 1)"),
        ((1, 1), (1, 1), (2, 2), (1, 1), 1, "(1, 1)"),  # all outputs are of padding
        ((1, 1), (3, 3), (1, 1), (3, 3), 1, "(3, 3)"),  # and so are some here
        ((2, 2), (3, 3), (1, 1), (1, 1), 8, "(3, 3)"),  # in a frame
        ((2, 4), (5, 5), (1, 1), (2, 2), 8, "(3, 5)"),
    ],
)
@pytest.mark.parametrize("no_bias", (True, False))
def test_convolutions_of_small_images_are_trained_in_other_forms(
    size, kernel, stride, pad, groups, left, no_bias, monkeypatch
):
    monkeypatch.setattr(blocks, "has_avx512", lambda: False)
    how = {"kernel": kernel, "stride": stride, "pad": pad, "num_group": groups, "no_bias": no_bias}
    net = built(mx.sym.Convolution(mx.sym.var("data"), num_filter=8, name="conv", **how), (8, *size))
    nodes, _ = network.parse_nodes(blocks.to_symbol(net, trained=True).tojson())
    [conv] = [node for node in nodes if node.op == "Convolution"]
    assert conv.attrs["kernel"] == left and (conv.name != "conv") == (groups == 8 and "1" not in left)
    x = images(net, 3)
    found = []
    for trained in (False, True):
        shapes = {name: value.shape for name, value in net.arrays.items()}
        bound = blocks.to_symbol(net, trained=trained).simple_bind(mx.cpu(), data=x.shape, grad_req="write", **shapes)
        y = bound.forward(is_train=True, data=x, **net.arrays)[0]
        bound.backward(mx.nd.array(np.random.default_rng(1).normal(size=y.shape)))
        found.append({"y": y.asnumpy(), **{name: each.asnumpy() for name, each in bound.grad_dict.items()}})
    assert found[0].keys() == found[1].keys()
    for name, value in found[0].items():
        np.testing.assert_allclose(found[1][name], value, rtol=1e-4, atol=1e-5, err_msg=name)

"""DCP: classifiers as outputs of the graph, gradients against central differences, channels that it must not choose."""

from dataclasses import replace
from types import SimpleNamespace

import mxnet as mx
import numpy as np
import pytest
from networks import built, difference, images, random_network

from gcp.backend.blocks import predict, to_block
from gcp.cost.analytic import macs
from gcp.cost.base import Budget
from gcp.errors import UserError
from gcp.methods import dcp
from gcp.methods.base import METHODS, Problem
from gcp.train import auxiliary, reconstruct
from gcp.train.tasks import CLASSIFICATION, TASKS
from tests.test_prune import Noise


@pytest.fixture(scope="module")
def net():
    return random_network("cifar_resnet20_v1", (3, 8, 8), 4)


def problem_of(net, target=0.6, n=24):
    cost, data = macs(net), SimpleNamespace(train=Noise(n), validation=Noise(8))
    return Problem(net, Budget(cost, cost(net.widths), target), data, 0, 8, statistics_images=16)


def test_classifiers_are_outputs_beside_the_networks_own_and_come_out_again(net):
    at = auxiliary.places(net, 2)
    wide, x = auxiliary.with_classifiers(net, at, 0), mx.nd.array(images(net))
    outputs = to_block(wide)(x)
    assert [y.shape for y in outputs] == [(len(x), 4)] * 3
    np.testing.assert_allclose(outputs[0].asnumpy(), predict(net, x.asnumpy()), atol=1e-5)
    assert wide.widths == net.widths, "what reads a channel besides decides no group"
    again = auxiliary.without_classifiers(wide)
    assert again.nodes == net.nodes and again.outputs == net.outputs and again.shapes == net.shapes
    # By hand: the mean over the map behind norm and relu, times the weights.
    (i, *_), name = at, "auxiliary0"
    tensor = to_block(auxiliary.replace(net, outputs=((i, 0),)))(x).asnumpy()
    mean = np.maximum(tensor / np.sqrt(1 + 1e-5), 0).mean((2, 3))
    by_hand = mean @ wide.arrays[f"{name}_dense_weight"].T
    np.testing.assert_allclose(outputs[1].asnumpy(), by_hand, atol=1e-4)


def test_places_are_spread_over_the_blocks_and_none_is_the_last(net):
    additions = [i for i, node in enumerate(net.nodes) if "plus" in node.name]
    assert len(additions) == 9
    assert auxiliary.places(net, 2) == [additions[2], additions[5]]
    assert auxiliary.places(net, 8) == additions[:8]
    assert auxiliary.places(net, 100) == additions[:8]


def test_gradients_are_those_of_the_joint_loss(net):
    """Central differences of the loss for some weights of a layer behind which a classifier reads."""
    wide = auxiliary.with_classifiers(net, auxiliary.places(net, 2), 0)
    group = next(g for g in wide.groups if len(g.producers) == 1)
    (layer,) = group.consumers
    i = wide.index[layer]
    split = Noise(8)
    x, y = mx.nd.array(split.x), mx.nd.array(split.y)
    wanted = [np.random.default_rng(0).normal(size=(8, *wide.shapes[i][0][1:])).astype("f")]
    chooser = auxiliary.Chooser(wide, [(i, 0)], [2.0], 1, 0.7, CLASSIFICATION, 0.1)
    outputs = to_block(auxiliary.replace(wide, outputs=(wide.outputs[1], (i, 0))), frozen_statistics=True)(x)
    by_hand = 0.7 * CLASSIFICATION.loss(outputs[0], y).asnumpy().mean()
    by_hand += np.square(outputs[1].asnumpy() - wanted[0]).mean() / 2.0
    assert chooser.loss(x, y, wanted).asscalar() == pytest.approx(by_hand, rel=1e-4)
    (gradient,), before = chooser.gradients(), chooser.weights()
    (name,) = before
    largest = np.argsort(-np.abs(gradient).ravel())[:4]
    for k in largest:
        losses = []
        for e in (1e-2, -1e-2):
            moved = before[name].copy()
            moved.ravel()[k] += e
            chooser.put({name: moved})
            losses.append(chooser.loss(x, y, wanted).asscalar())
        assert gradient.ravel()[k] == pytest.approx((losses[0] - losses[1]) / 2e-2, rel=0.05)
    # A step lowers the loss by what the mask lets move: Adam's first step is the learning rate, against the gradient.
    chooser.put(before)
    loss, mask = chooser.loss(x, y, wanted).asscalar(), np.zeros_like(before[name])
    mask.ravel()[largest] = 1
    chooser.step({name: mask})
    np.testing.assert_allclose(chooser.weights()[name] - before[name], -0.1 * mask * np.sign(gradient), atol=1e-4)
    assert chooser.loss(x, y, wanted).asscalar() < loss


def test_nothing_is_dropped_out_while_channels_are_chosen():
    x = mx.sym.Convolution(mx.sym.var("data"), num_filter=6, kernel=(1, 1), name="first")
    x = mx.sym.Convolution(
        mx.sym.Dropout(mx.sym.Activation(x, act_type="relu"), p=0.5), num_filter=6, kernel=(1, 1), name="second"
    )
    x = mx.sym.Pooling(mx.sym.Activation(x, act_type="relu"), global_pool=True, pool_type="avg")
    net, split = built(mx.sym.FullyConnected(x, num_hidden=4, name="out"), (3, 8, 8)), Noise(8)
    i = net.index["second"]
    x, y = mx.nd.array(split.x), mx.nd.array(split.y)
    chooser = auxiliary.Chooser(net, [(i, 0)], [1.0], 0, 0.0, CLASSIFICATION, 0.1)
    assert chooser.loss(x, y, reconstruct.tensors_of(net, [(i, 0)])(x)).asscalar() < 1e-6


def test_what_weights_read_is_summed_by_channel():
    """Two conv groups of two inputs each, of which the second input of both is another group's."""
    values = np.arange(4 * 2 * 3, dtype=float).reshape(4, 2, 3)
    units = np.array([0, -1, 1, -1])
    by_hand = [values[:2, 0].sum(), values[2:, 0].sum()]
    np.testing.assert_array_equal(dcp._by_unit(values, units, 2), by_hand)
    reads = dcp._reads(units, np.array([True, False]), values)
    assert np.broadcast_to(reads, values.shape)[:, 0].all(1).tolist() == [True, True, False, False]
    assert np.broadcast_to(reads, values.shape)[:, 1].all()


def planted(net):
    """A group two of whose channels are dead."""
    group = next(g for g in net.groups if len(g.producers) == 1)
    arrays = {name: net.arrays[name].copy() for name in net.norm_arrays(group.norms[0])}
    for value in arrays.values():
        value[[1, 5]] = 0
    return group.name, net.with_arrays(arrays)


@pytest.mark.slow
def test_dead_channels_are_not_chosen(net):
    name, net = planted(net)
    options = METHODS.options["dcp"](n_images_seen=16, rounds=2, lam=0)  # labels are noise
    wide = auxiliary.with_classifiers(net, auxiliary.places(net, 2), 0)
    small = dcp._pruned(problem_of(net), wide, {name: net.widths[name] - 2}, options, 0)
    assert small.widths == {**net.widths, name: net.widths[name] - 2}
    gamma = small.norm_arrays(next(g for g in small.groups if g.name == name).norms[0])[0]
    assert (small.arrays[gamma] != 0).all()
    assert difference(predict(small, images(net)), predict(net, images(net))) < 0.5
    assert not [array for array in small.arrays if array.startswith(auxiliary.PREFIX)]


@pytest.mark.slow
def test_steps_bring_readers_nearer_to_what_they_said(net, monkeypatch):
    """The joint loss's error over variance; outputs that are computed anew each time give the same."""
    wide = auxiliary.with_classifiers(net, auxiliary.places(net, 2), 0)
    group = next(g for g in net.groups if len(g.producers) == 1)
    (reader,) = group.consumers

    def small(steps):
        options = METHODS.options["dcp"](n_images_seen=8, rounds=2, steps=steps, lam=0)
        return dcp._pruned(problem_of(net, n=8), wide, {group.name: group.size // 2}, options, 0)

    def error(found):
        x = mx.nd.array(Noise(8).x)
        said, should = (reconstruct.tensors_of(of, [(of.index[reader], 0)])(x)[0] for of in (found, net))
        return np.square(said - should).mean() / should.var()

    found = small(16)
    assert error(found) < 0.8 * error(small(0))
    monkeypatch.setattr(dcp, "HELD", 0)
    again = small(16)
    assert all(np.array_equal(again.arrays[k], v) for k, v in found.arrays.items())


@pytest.mark.slow
def test_the_method_meets_its_budget_counts_its_images_and_resumes(net, tmp_path):
    for where, target in (("inside", 0.6), ("all", 0.4)):
        folder, logged = tmp_path / where, []
        folder.mkdir()
        run = SimpleNamespace(path=folder, log=lambda event, **facts: logged.append(event))
        options = METHODS.options["dcp"](where=where, n_images_seen=16, rounds=2, epochs=1)
        outcome = METHODS["dcp"](problem_of(net, target), options, run)
        cost = macs(net)
        assert cost(outcome.network.widths) <= target * cost(net.widths)
        assert outcome.images == {"classifiers": 24, "selection": 16, "statistics": 16}
        assert sum(outcome.images.values()) == options.n_images(24, 8, 16)
        logged.clear()
        again = METHODS["dcp"](problem_of(net, target), options, run)  # the training is read back
        assert not logged
        assert all(np.array_equal(again.network.arrays[k], v) for k, v in outcome.network.arrays.items())


def test_without_a_place_for_a_classifier_it_is_refused():
    x = mx.sym.Convolution(mx.sym.var("data"), num_filter=6, kernel=(1, 1), name="first")
    x = mx.sym.Convolution(x, num_filter=6, kernel=(1, 1), name="second")
    x = mx.sym.Pooling(x, global_pool=True, pool_type="avg")
    bare = built(mx.sym.FullyConnected(x, num_hidden=4, name="out"), (3, 8, 8))
    with pytest.raises(UserError, match="no residual block or ReLU"):
        METHODS.options["dcp"]().check(bare, problem_of(bare).budget)


def test_a_task_without_labels_of_images_is_refused(net, monkeypatch):
    monkeypatch.setitem(TASKS._entries, "boxes", object())
    with pytest.raises(UserError, match="task 'boxes'"):
        METHODS["dcp"](replace(problem_of(net), task="boxes"), METHODS.options["dcp"](), None)

"""ThiNet and CP: Gram matrices against sums over samples, choices against slow ones, redundancy that must be found."""

from types import SimpleNamespace

import mxnet as mx
import numpy as np
import pytest
from networks import built, difference, images, random_network
from sklearn.linear_model import Lasso

from gcp.backend.blocks import predict
from gcp.cost.analytic import macs
from gcp.cost.base import Budget
from gcp.errors import UserError
from gcp.methods import layerwise
from gcp.methods.base import METHODS, Problem
from gcp.methods.cp import by_lasso
from gcp.methods.layerwise import Contributions
from gcp.methods.thinet import least_missed
from gcp.train import reconstruct
from tests.test_prune import Noise

RUN = SimpleNamespace(path=None, log=lambda event, **facts: None)


def two_convs(groups=1, n=8):
    """A conv with relu, and one that reads it; a dense layer."""
    x = mx.sym.Convolution(mx.sym.var("data"), num_filter=n, kernel=(3, 3), pad=(1, 1), name="first")
    x = mx.sym.Activation(x, act_type="relu", name="relu")
    x = mx.sym.Convolution(x, num_filter=6, num_group=groups, kernel=(3, 3), pad=(1, 1), name="second")
    x = mx.sym.Pooling(mx.sym.Activation(x, act_type="relu"), global_pool=True, pool_type="avg")
    return built(mx.sym.FullyConnected(x, num_hidden=4, name="out"), (3, 8, 8))


def problem_of(net, target=0.5, n=24, batch=8):
    cost, data = macs(net), SimpleNamespace(train=Noise(n), validation=Noise(8))
    return Problem(net, Budget(cost, cost(net.widths), target), data, 0, batch, statistics_images=16, moved="mean")


def random_contributions(n=7, n_samples=40, seed=0):
    """Contributions of channels (samples, outputs), and the matrices that they make."""
    rng = np.random.default_rng(seed)
    each = rng.normal(size=(n, n_samples, 3)) * rng.uniform(0.2, 2, (n, 1, 1))
    flat = each.reshape(n, -1)
    return flat, Contributions(flat @ flat.T, flat @ flat.sum(0), np.ones(n))


def test_what_channels_say_is_summed_as_over_the_samples(monkeypatch):
    """The contributions of every channel at every place, one by one; a grouped conv reads two channels at a time."""
    monkeypatch.setattr(reconstruct, "POSITIONS", 10**6)
    for groups in (1, 2):
        net = two_convs(groups)
        x = np.random.default_rng(0).normal(size=(4, 3, 8, 8)).astype(np.float32)
        group = next(g for g in net.groups if g.consumers == ("second",))
        layer = reconstruct.Layer(net, net.index["second"], np.arange(6), 0)
        sums = reconstruct.Sums(layer, net)
        read = reconstruct.tensors_of(net, [(net.index["relu"], 0)])(mx.nd.array(x))[0]
        said = reconstruct.tensors_of(net, [(net.index["second"], 0)])(mx.nd.array(x))[0]
        sums.add(layer.read(read, 0), layer.sampled(said, 0))
        units = net.structure.calls[net.index["second"]].read - group.start
        found = layerwise._contributions(sums, units, np.ones(6), group.size)
        each = []
        for unit in range(group.size):
            only = np.where((units == unit)[None, :, None, None], read, 0)
            conv = mx.nd.Convolution(
                mx.nd.array(only),
                mx.nd.array(net.arrays["second_weight"]),
                num_filter=6,
                num_group=groups,
                kernel=(3, 3),
                pad=(1, 1),
                no_bias=True,
            ).asnumpy()
            each.append(conv - conv.mean((0, 2, 3), keepdims=True))
        flat = np.array(each, np.float64).reshape(group.size, -1)
        by_hand = flat @ flat.T / np.square(flat.sum(0)).sum()
        np.testing.assert_allclose(found.gram, by_hand, rtol=1e-3, atol=1e-6)
        np.testing.assert_allclose(found.wanted, by_hand.sum(0), rtol=1e-3, atol=1e-5)


def test_thinet_is_greedy_over_the_samples():
    for seed in range(10):
        flat, contributions = random_contributions(seed=seed)
        gone = []
        for _ in range(4):
            left = [i for i in range(7) if i not in gone]
            gone.append(min(left, key=lambda i: np.square(flat[[*gone, i]].sum(0)).sum()))
        assert list(least_missed(contributions, 3)) == sorted(set(range(7)) - set(gone))


@pytest.mark.slow
def test_cp_is_lasso_with_the_penalty_raised_until_few_enough_are_left():
    for seed in range(3):
        flat, contributions = random_contributions(seed=seed)
        wanted = flat.sum(0)
        for width in (2, 4):
            for penalty in np.geomspace(1e-3, 10, 400):
                factors = Lasso(penalty, fit_intercept=False, max_iter=10**5, tol=1e-9).fit(flat.T, wanted).coef_
                if (factors != 0).sum() <= width:
                    break
            assert set(np.flatnonzero(factors)) <= set(by_lasso(contributions, width))
            assert len(by_lasso(contributions, width)) == width


CHOICES = {"thinet": least_missed, "cp": by_lasso}


@pytest.mark.parametrize("method", CHOICES)
def test_channels_that_others_make_up_for_go_and_nothing_is_lost(method):
    """One channel is dead. CP: three say what the first three say. ThiNet: two take each other's word back."""
    net = two_convs()
    arrays = {name: net.arrays[name].copy() for name in ("first_weight", "first_bias", "second_weight")}
    for name in ("first_weight", "first_bias"):
        arrays[name][7] = 0
        if method == "cp":
            arrays[name][4:7] = arrays[name][0:3]
        else:
            arrays[name][5] = arrays[name][4]
            arrays[name][6] = 0
    if method == "thinet":
        arrays["second_weight"][:, 4] *= 0.5
        arrays["second_weight"][:, 5] = -arrays["second_weight"][:, 4]
    net = net.with_arrays(arrays)
    sizes = net.widths
    name = next(g.name for g in net.groups if g.consumers == ("second",))
    options = METHODS.options[method](where="all", n_images_seen=24)
    small = layerwise.reconstructed(problem_of(net), {**sizes, name: 4}, options, CHOICES[method])
    assert small.widths[name] == 4
    kept = small.arrays["first_weight"].reshape(4, -1)
    assert {tuple(w) for w in kept} == {tuple(w) for w in arrays["first_weight"][:4].reshape(4, -1)}
    # As good as the ridge lets it be on images that it has not seen.
    assert difference(predict(small, images(net)), predict(net, images(net))) < 0.05


@pytest.mark.slow
@pytest.mark.parametrize("method", ["thinet", "cp"])
def test_a_residual_network_meets_its_budget_and_counts_its_images(method):
    net = random_network("cifar_resnet20_v1", (3, 8, 8), 4)
    cost = macs(net)
    for where, target in (("inside", 0.6), ("all", 0.5)):
        options = METHODS.options[method](where=where, n_images_seen=16)
        outcome = METHODS[method](problem_of(net, target), options, RUN)
        assert cost(outcome.network.widths) <= target * cost(net.widths)
        assert outcome.images == {"selection": 16, "statistics": 16}
        assert sum(outcome.images.values()) == options.n_images(24, 8, 16)
        tied = [g.name for g in net.groups if len(g.producers) > 1]
        whole = [outcome.network.widths[name] == net.widths[name] for name in tied]
        assert all(whole) if where == "inside" else not any(whole)


@pytest.mark.slow
@pytest.mark.parametrize("method", CHOICES)
def test_it_loses_less_than_channels_at_random(method):
    net = random_network("cifar_resnet20_v1", (3, 8, 8), 4)
    rng, x = np.random.default_rng(0), images(net, 32)
    options = METHODS.options[method](n_images_seen=24)
    widths = {name: n // 2 for name, n in layerwise.prunable_sizes(net, "inside").items()}

    def at_random(contributions, width):
        return np.sort(rng.permutation(len(contributions.gram))[:width])

    errors = [
        np.square(predict(layerwise.reconstructed(problem_of(net), widths, options, how), x) - predict(net, x)).sum()
        for how in (CHOICES[method], at_random, at_random)
    ]
    assert errors[0] < min(errors[1:])


def test_a_budget_that_cannot_be_met_inside_blocks_is_refused_before_anything_is_computed():
    net = random_network("cifar_resnet20_v1", (3, 8, 8), 4)
    with pytest.raises(
        UserError, match="inside residual blocks alone; give a target of at least 0.0.*set `where` to all"
    ):
        METHODS.options["thinet"]().check(net, problem_of(net, 0.02).budget)


@pytest.mark.slow
def test_several_readers_and_a_depthwise_conv_between():
    """Every reader of a group of MobileNet is behind a depthwise conv; a branching network has two readers."""
    net = random_network("mobilenet0.25", (3, 32, 32), 4)
    data = SimpleNamespace(train=Noise(8), validation=Noise(8))
    data.train.x = images(net, 8)
    cost = macs(net)
    problem = Problem(net, Budget(cost, cost(net.widths), 0.5), data, 0, 8)
    outcome = METHODS["thinet"](problem, METHODS.options["thinet"](n_images_seen=8), RUN)
    assert cost(outcome.network.widths) <= 0.5 * cost(net.widths)
    assert np.isfinite(predict(outcome.network, images(net))).all()


@pytest.mark.slow
def test_the_widths_of_gcp_are_filled_from_the_dense_network(tmp_path):
    net = random_network("cifar_resnet20_v1", (3, 8, 8), 4)
    problem = problem_of(net, 0.5)
    how = {"iterations": 1, "score": "relative"}
    folders = [tmp_path / name for name in ("gcp", "gcp_reconstructed")]
    outcomes = []
    for folder in folders:
        folder.mkdir()
        run = SimpleNamespace(path=folder, log=lambda event, **facts: None)
        options = METHODS.options[folder.name](**how)
        outcomes.append(METHODS[folder.name](problem, options, run))
        assert sum(outcomes[-1].images.values()) == options.n_images(24, 8, 16)
    gcp, filled = outcomes
    assert filled.network.widths == gcp.network.widths and filled.history == gcp.history
    assert filled.images["selection"] == 24 and filled.images["recover"] == gcp.images["recover"]
    # The stem reads the image, so nothing is fitted there: its filters are some of the dense network's.
    stem = net.groups[0].producers[0]
    dense, small = (each.arrays[each.weight(stem)] for each in (net, filled.network))
    assert all(any(np.array_equal(mine, other) for other in dense) for mine in small)
    assert METHODS.options["gcp_reconstructed"](selection="cp").label("macs") == "GCP-f, then CP"


def test_a_branch_makes_up_for_what_its_shortcut_lacks():
    """The block's input lost the part that its branch could say: CP's target is the wanted sum less that input."""
    data = mx.sym.Convolution(mx.sym.var("data"), num_filter=6, kernel=(3, 3), pad=(1, 1), name="stem")
    x = mx.sym.Activation(mx.sym.Convolution(data, num_filter=8, kernel=(1, 1), name="inner"), act_type="relu")
    x = mx.sym.BatchNorm(mx.sym.Convolution(x, num_filter=6, kernel=(1, 1), no_bias=True, name="last"), name="norm")
    x = mx.sym.Pooling(mx.sym.elemwise_add(x, data, name="sum"), global_pool=True, pool_type="avg")
    whole = built(mx.sym.FullyConnected(x, num_hidden=4, name="out"), (3, 8, 8))
    net = whole.with_arrays({"stem_weight": 0.8 * whole.arrays["stem_weight"]})  # as if it had been pruned
    group = next(g for g in whole.groups if g.consumers == ("last",))
    keep, x = {g.name: np.arange(g.size) for g in whole.groups}, mx.nd.array(images(whole, 16))
    assert reconstruct.shortcut_of(whole, "inner") is None
    assert reconstruct.shortcut_of(whole, "last").tensor == (whole.index["stem"], 0)

    wanted = reconstruct.tensors_of(whole, [(whole.index["sum"], 0)])(x)[0]
    errors = []
    for corrects in (False, True):
        seen = layerwise.looked_at(whole, net, keep, group.name, layerwise.Look([x], 0, corrects))
        fitted, _ = layerwise.cut_group(problem_of(whole), net, seen, 7, by_lasso)
        errors.append(np.square(reconstruct.tensors_of(fitted, [(fitted.index["sum"], 0)])(x)[0] - wanted).mean())
    # By hand: all outputs at all places, regressed on what is read.
    read = fitted.nodes[fitted.index["last"]].inputs[0]
    inputs, stem = (
        reconstruct.tensors_of(*of)(x)[0].transpose(0, 2, 3, 1).reshape(16 * 64, -1)
        for of in ((fitted, [read]), (net, [(net.index["stem"], 0)]))
    )
    target = wanted.transpose(0, 2, 3, 1).reshape(-1, 6) - stem
    inputs = np.c_[inputs, np.ones(len(inputs))]
    best = np.square(inputs @ np.linalg.lstsq(inputs, target, rcond=None)[0] - target).mean()
    assert best <= errors[1] < 1.2 * best and errors[1] < 0.9 * errors[0]


@pytest.mark.parametrize("where", ("behind a concatenation", "whole conv groups", "in every conv group"))
def test_dead_channels_go_and_nothing_is_lost(where):
    """What reads them: a conv of two joined groups; grouped convs that lose conv groups, or inputs of each."""
    data = mx.sym.var("data")
    x = mx.sym.Convolution(data, num_filter=8, kernel=(3, 3), pad=(1, 1), name="first")
    if where == "behind a concatenation":
        other = mx.sym.Convolution(data, num_filter=5, kernel=(1, 1), name="other")
        x, dead = mx.sym.Concat(other, x), [1, 6]
    if where == "whole conv groups":
        x = mx.sym.Convolution(mx.sym.relu(x), num_filter=8, num_group=4, kernel=(1, 1), no_bias=True, name="grouped")
        x, dead = mx.sym.BatchNorm(x, name="norm"), [2, 3]
    if where == "in every conv group":
        dead = [1, 5]
    n_groups = 2 if where == "in every conv group" else 1
    x = mx.sym.Convolution(mx.sym.relu(x), num_filter=6, num_group=n_groups, kernel=(3, 3), name="reader")
    x = mx.sym.Pooling(mx.sym.relu(x), global_pool=True, pool_type="avg")
    net = built(mx.sym.FullyConnected(x, num_hidden=4, name="out"), (3, 8, 8))
    arrays = {name: net.arrays[name].copy() for name in ("first_weight", "first_bias")}
    for array in arrays.values():
        array[dead] = 0
    if where == "whole conv groups":
        arrays["reader_weight"] = net.arrays["reader_weight"].copy()
        arrays["reader_weight"][:, dead] = 0
    net = net.with_arrays(arrays)
    group = next(g for g in net.groups if "first" in g.producers)
    n_dead = 2 if group.size == 8 else 1
    options = METHODS.options["thinet"](where="all", n_images_seen=24)
    for choose in CHOICES.values():
        small = layerwise.reconstructed(problem_of(net), {group.name: group.size - n_dead}, options, choose)
        kept = np.delete(arrays["first_weight"], dead, axis=0)
        assert np.array_equal(small.arrays["first_weight"], kept)
        assert difference(predict(small, images(net)), predict(net, images(net))) < 1e-3


def test_cp_drops_one_of_channels_of_which_one_is_the_mean_of_others():
    """All are read by the same weights: where the penalty ends, the least sum of factors does without one of three."""
    data = mx.sym.var("data")
    x = mx.sym.Convolution(data, num_filter=8, kernel=(3, 3), pad=(1, 1), name="first")
    x = mx.sym.Convolution(x, num_filter=6, kernel=(3, 3), name="second")
    x = mx.sym.Pooling(mx.sym.relu(x), global_pool=True, pool_type="avg")
    net = built(mx.sym.FullyConnected(x, num_hidden=4, name="out"), (3, 8, 8))
    arrays = {name: net.arrays[name].copy() for name in ("first_weight", "first_bias", "second_weight")}
    for name in ("first_weight", "first_bias"):
        arrays[name][7] = (arrays[name][2] + arrays[name][4]) / 2
    arrays["second_weight"][:, [2, 4]] = arrays["second_weight"][:, [7]]
    net = net.with_arrays(arrays)
    name = next(g.name for g in net.groups if "first" in g.producers)
    options = METHODS.options["cp"](where="all", n_images_seen=24)
    small = layerwise.reconstructed(problem_of(net), {name: 7}, options, by_lasso)
    kept = {tuple(filter) for filter in small.arrays["first_weight"].reshape(7, -1)}
    gone = [i for i, filter in enumerate(arrays["first_weight"].reshape(8, -1)) if tuple(filter) not in kept]
    assert len(gone) == 1 and gone[0] in (2, 4, 7)
    assert difference(predict(small, images(net)), predict(net, images(net))) < 0.05

"""Every criterion against a slower obvious version, and against channels that it must find."""

from types import SimpleNamespace

import mxnet as mx
import numpy as np
import pytest
from networks import built, random_network

from gcp.backend.blocks import to_block
from gcp.cost.analytic import macs
from gcp.cost.base import Budget
from gcp.errors import UserError
from gcp.graph.surgery import with_gates
from gcp.methods.base import Problem
from gcp.methods.criteria import CRITERIA, images_to_score, ranked_by
from gcp.train.tasks import CLASSIFICATION
from tests.test_prune import Noise


@pytest.fixture(scope="module")
def net():
    return random_network("cifar_resnet20_v1", (3, 8, 8), 4)


def problem(net, n=16):
    cost = macs(net)
    data = SimpleNamespace(train=Noise(n))
    return Problem(net, Budget(cost, cost(net.widths), 0.5), data, seed=0, batch=8)


def filters_of(net, group, j):
    """The filters that make unit j of a group whose producers make nothing else."""
    return [net.arrays[net.weight(layer)][j].astype(np.float64).ravel() for layer in group.producers]


def planted(net, value):
    """The first single group, and the network with its filter 2 changed by `value(all filters)`."""
    group = next(g for g in net.groups if len(g.producers) == 1)
    name = net.weight(group.producers[0])
    weight = net.arrays[name].copy()
    weight[2] = value(np.delete(weight, 2, axis=0))
    return group.name, net.with_arrays({name: weight})


BY_HAND = {
    "l1": lambda mine, others: np.abs(mine).sum(),
    "l2": lambda mine, others: np.sqrt((mine**2).sum()),
    "fpgm": lambda mine, others: sum(np.sqrt(((mine - other) ** 2).sum()) for other in others),
}


@pytest.mark.parametrize("criterion", BY_HAND)
def test_a_criterion_of_filters_is_summed_over_all_layers_that_make_the_channel(net, criterion):
    scores = CRITERIA[criterion](problem(net))
    for group in net.groups[:3]:
        each = [filters_of(net, group, j) for j in range(group.size)]
        for j in range(group.size):
            by_hand = sum(BY_HAND[criterion](mine, [other[k] for other in each]) for k, mine in enumerate(each[j]))
            assert scores[group.name][j] == pytest.approx(by_hand, rel=1e-5)


def test_lamp_is_a_share_of_what_is_not_smaller_in_the_group(net):
    scores = CRITERIA["lamp"](problem(net))
    for group in net.groups[:3]:
        squares = [sum((w**2).sum() for w in filters_of(net, group, j)) for j in range(group.size)]
        by_hand = [mine / sum(other for other in squares if other >= mine) for mine in squares]
        np.testing.assert_allclose(scores[group.name], by_hand, rtol=1e-6)
        assert scores[group.name].max() == 1


def test_a_filter_near_the_median_of_its_layer_goes_first_by_distances_and_not_by_norms(net):
    name, other = planted(net, lambda others: np.median(others, axis=0) + 0.1 * others[0])
    assert CRITERIA["fpgm"](problem(other))[name].argmin() == 2
    name, large = planted(net, lambda others: 10 * others[0])
    assert all(CRITERIA[criterion](problem(large))[name].argmax() == 2 for criterion in ("l1", "l2", "lamp", "fpgm"))


@pytest.mark.parametrize("criterion", ["l1", "l2", "lamp", "fpgm"])
def test_a_small_filter_goes_first(net, criterion):
    name, other = planted(net, lambda others: 0.01 * others[0])
    assert criterion == "fpgm" or CRITERIA[criterion](problem(other))[name].argmin() == 2
    name, other = planted(net, lambda others: others.mean(axis=0))
    assert criterion != "fpgm" or CRITERIA[criterion](problem(other))[name].argmin() == 2


@pytest.mark.parametrize("gated", [False, True])
def test_the_scale_of_batch_norm_counts_with_what_gates_multiply_it_by(net, gated):
    group = next(g for g in net.groups if len(g.norms) > 1)
    gammas = [net.norm_arrays(norm)[0] for norm in group.norms]
    rng = np.random.default_rng(0)
    of = net.with_arrays({name: rng.normal(size=group.size).astype(np.float32) for name in gammas})
    of = with_gates(of) if gated else of
    by_hand = sum(np.abs(of.arrays[name]) for name in gammas)
    np.testing.assert_allclose(CRITERIA["bn_scale"](problem(of))[group.name], by_hand, rtol=1e-6)


def test_without_scales_to_rank_by_bn_scale_is_refused():
    x = mx.sym.Convolution(mx.sym.var("data"), num_filter=6, kernel=(1, 1), name="bare")
    x = mx.sym.Pooling(mx.sym.relu(x), global_pool=True, pool_type="avg")
    bare = built(mx.sym.FullyConnected(x, num_hidden=3, name="out"), (3, 8, 8))
    x = mx.sym.Convolution(mx.sym.var("data"), num_filter=6, kernel=(1, 1), name="held", no_bias=True)
    x = mx.sym.Pooling(mx.sym.relu(mx.sym.BatchNorm(x, fix_gamma=True, name="norm")), global_pool=True, pool_type="avg")
    held = built(mx.sym.FullyConnected(x, num_hidden=3, name="out"), (3, 8, 8))
    for net in (bare, with_gates(bare), held, with_gates(held)):
        with pytest.raises(UserError) as error:
            CRITERIA["bn_scale"](problem(net))
        assert error.value.key == "criterion.network"


@pytest.mark.slow
def test_group_fisher_is_the_mean_square_of_the_slopes_of_single_images(net):
    """Against central differences, image by image; a channel that nothing reads and that says nothing is worth 0."""
    group = next(g for g in net.groups if len(g.producers) == 1)
    gamma, beta = net.norm_arrays(group.norms[0])
    dead = {name: net.arrays[name].copy() for name in (gamma, beta)}
    for value in dead.values():
        value[3] = 0
    net, e = net.with_arrays(dead), 2e-3
    given = problem(net, n=6)
    scores = CRITERIA["group_fisher"](given)[group.name]
    assert images_to_score("group_fisher", 6) == 6 and scores[3] == 0 and (np.delete(scores, 3) > 0).all()
    best, x, y = int(scores.argmax()), mx.nd.array(given.data.train.x), mx.nd.array(given.data.train.y)

    def losses(factor):
        arrays = {name: net.arrays[name].copy() for name in (gamma, beta)}
        for value in arrays.values():
            value[best] *= factor
        return CLASSIFICATION.loss(to_block(net.with_arrays(arrays), frozen_statistics=True)(x), y, 0.0).asnumpy()

    slopes = (losses(1 + e) - losses(1 - e)) / (2 * e)
    assert scores[best] == pytest.approx((slopes.astype(np.float64) ** 2).mean(), rel=0.05)


def test_scores_are_ranked_per_unit_of_cost_where_the_criterion_or_the_user_says_so(net):
    given = problem(net)
    price = given.budget.cost.marginal(net.widths)
    for criterion, of_cost in (("relative", True), ("l1", False)):
        plain = CRITERIA[criterion](given)
        for name in price:
            per_cost = plain[name] / price[name]
            np.testing.assert_array_equal(ranked_by(criterion, given, True)[name], per_cost)
            np.testing.assert_array_equal(ranked_by(criterion, given, False)[name], plain[name])
            np.testing.assert_array_equal(ranked_by(criterion, given)[name], per_cost if of_cost else plain[name])


def test_random_ranks_do_not_depend_on_the_width_of_a_group(net):
    """Ranked together, half of the channels go: half of every group, whether it is narrow or wide."""
    scores = CRITERIA["random"](problem(net))
    middle = np.median(np.concatenate(list(scores.values())))
    assert len({len(of) for of in scores.values()}) > 1
    assert all(2 * (of < middle).sum() == len(of) == len(set(of)) for of in scores.values())

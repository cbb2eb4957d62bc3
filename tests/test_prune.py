"""GCP's parts against hand-worked numbers and slower obvious versions."""

from dataclasses import replace
from itertools import islice
from types import SimpleNamespace

import mxnet as mx
import numpy as np
import pytest
from mxnet import autograd
from networks import built

from gcp.backend.blocks import predict, to_block
from gcp.backend.zoo import from_gluoncv
from gcp.cost.analytic import macs
from gcp.cost.base import Budget, Cost, product
from gcp.errors import UserError
from gcp.graph import network
from gcp.graph.network import auxiliary
from gcp.graph.surgery import rescale, shrink, silence, with_gates
from gcp.methods import criteria, select
from gcp.methods import gcp as gcp_method
from gcp.methods.base import METHODS, Problem
from gcp.train import loop, losses, optimisers, proximal, schedules, steps
from gcp.train.tasks import CLASSIFICATION


@pytest.fixture(scope="module")
def net():
    """CIFAR ResNet-20 at 8 px with batch-norm arrays that are not all alike."""
    plain = from_gluoncv("cifar_resnet20_v1", (3, 8, 8), 4, seed=3)
    rng = np.random.default_rng(3)
    low = {"gamma": 0.5, "beta": -0.3, "running_mean": -0.3, "running_var": 0.5}
    return plain.with_arrays(
        {
            k: rng.uniform(low[end], low[end] + 1, v.shape).astype(np.float32)
            for k, v in plain.arrays.items()
            for end in low
            if k.endswith("_" + end)
        }
    )


@pytest.fixture(scope="module")
def tiny():
    """Four convolutions at 8 px, one of them in a residual branch: for what takes whole iterations of GCP."""

    def scaled(x, n, name):
        x = mx.sym.Convolution(x, num_filter=n, kernel=(3, 3), pad=(1, 1), no_bias=True, name=name)
        return mx.sym.BatchNorm(x, fix_gamma=False, name=name + "_norm")

    x = mx.sym.relu(scaled(mx.sym.var("data"), 8, "first"))
    x = mx.sym.relu(x + scaled(mx.sym.relu(scaled(x, 12, "inner")), 8, "outer"))
    x = mx.sym.Pooling(mx.sym.relu(scaled(x, 16, "last")), global_pool=True, pool_type="avg")
    return built(mx.sym.FullyConnected(x, num_hidden=4, name="dense"), (3, 8, 8))


def images(n=8, seed=0):
    rng = np.random.default_rng(seed)
    return (
        mx.nd.array(rng.normal(size=(n, 3, 8, 8)).astype(np.float32)),
        mx.nd.array(rng.integers(0, 4, n).astype(np.float32)),
    )


def gradients(block, x, y):
    with autograd.record():
        loss = CLASSIFICATION.loss(block(x), y, 0.0)
    loss.backward()
    return {
        k: p.data().grad.asnumpy().astype(np.float64) for k, p in block.collect_params().items() if p.grad_req != "null"
    }


def test_a_proximal_step_is_the_obvious_one(net):
    net = rescale(with_gates(net))
    variables, penalties = network.scale_arrays(net), gcp_method.channel_penalties(net, macs(net))
    lr, lam, momentum, (x, y) = 0.05, 0.4, 0.9, images()
    block = to_block(net, frozen_statistics=True, trainable=variables)
    optimiser = proximal.ProximalSGD(net, block, {g: lam * c for g, c in penalties.items()}, momentum)

    value = {k: net.arrays[k].astype(np.float64) for k in variables}
    for g in net.groups:  # tied groups: factor every scale and shift into mask and rest
        if len(g.norms) > 1:
            m = np.sqrt(sum(value[net.norm_arrays(n)[0]] ** 2 for n in g.norms))
            value[g.name] = m
            for n in g.norms:
                for name in net.norm_arrays(n):
                    value[name] = value[name] / m
    velocity = {k: np.zeros_like(v) for k, v in value.items()}
    for _ in range(3):
        grad = gradients(block, x, y)
        optimiser.step(lr, len(y))
        for g in net.groups:
            if len(g.norms) > 1:
                grad[g.name] = 0
                for n in g.norms:
                    for name in net.norm_arrays(n):
                        grad[g.name] = grad[g.name] + grad[name] * value[name]
                        grad[name] = grad[name] * value[g.name]
        for k in value:
            velocity[k] = momentum * velocity[k] - lr * grad[k] / len(y)
            value[k] = value[k] + velocity[k]
        for g in net.groups:
            name = g.name if len(g.norms) > 1 else net.norm_arrays(g.norms[0])[0]
            value[name] = np.sign(value[name]) * np.maximum(np.abs(value[name]) - lr * lam * penalties[g.name], 0)
        expected = dict(value)
        for g in net.groups:
            if len(g.norms) > 1:
                for n in g.norms:
                    for name in net.norm_arrays(n):
                        expected[name] = value[name] * value[g.name]
        for k in variables:
            np.testing.assert_allclose(
                block.collect_params()[k].data().asnumpy(), expected[k], rtol=2e-4, atol=2e-5, err_msg=k
            )


def test_a_penalty_beyond_every_scale_silences_all_channels(net):
    variables = network.scale_arrays(net)
    block = to_block(net, frozen_statistics=True, trainable=variables)
    optimiser = proximal.ProximalSGD(net, block, {g.name: 1e6 for g in net.groups}, 0.9)
    gradients(block, *images())
    optimiser.step(0.1, 8)
    for g in net.groups:
        for n in g.norms:
            assert not block.collect_params()[net.norm_arrays(n)[0]].data().asnumpy().any()


def test_penalties_have_mean_one_and_follow_the_cost(net):
    cost = macs(net)
    penalties = gcp_method.channel_penalties(net, cost)
    assert np.mean(list(penalties.values())) == pytest.approx(1)
    name, other = net.groups[0].name, net.groups[-1].name
    drop = {g: cost(net.widths) - cost({**net.widths, g: net.widths[g] - 1}) for g in (name, other)}
    assert penalties[name] / penalties[other] == pytest.approx(drop[name] / drop[other])


def test_variables_are_scales_shifts_and_the_output_layer(net):
    variables = network.scale_arrays(net)
    assert {"dense0_weight", "dense0_bias"} <= variables
    assert all(k.endswith(("gamma", "beta")) for k in variables - {"dense0_weight", "dense0_bias"})
    assert not variables & auxiliary(net)
    masked = with_gates(from_gluoncv("vgg11_bn", (3, 32, 32), 4))
    assert {"dense0_gate", "dense1_gate"} <= network.scale_arrays(masked)
    assert "dense0_weight" not in network.scale_arrays(masked)


def test_relative_lambda_brings_a_free_channel_of_mean_scale_to_zero(net):
    strength = criteria.absolute_penalty(net, 1.0, lr=0.02, n_steps=50)
    scales = [np.sqrt(sum(net.arrays[net.norm_arrays(n)[0]].astype(float) ** 2 for n in g.norms)) for g in net.groups]
    assert 50 * 0.02 * strength == pytest.approx(np.concatenate(scales).mean(), rel=1e-5)


# ---- scores ----------------------------------------------------------------------------------------------------


def test_paper_score_by_hand(net):
    """A single group: gamma^2 times the squared norm of the one conv that reads it."""
    g = next(g for g in net.groups if len(g.norms) == 1)
    gamma = net.arrays[net.norm_arrays(g.norms[0])[0]]
    w = net.arrays[net.weight(g.consumers[0])]
    by_hand = [float(gamma[j]) ** 2 * float((w[:, j].astype(float) ** 2).sum()) for j in range(g.size)]
    np.testing.assert_allclose(criteria.paper_scores(net)[g.name], by_hand, rtol=1e-6)


def test_paper_score_does_not_depend_on_the_scale_and_relative_neither(net):
    for scores in (criteria.paper_scores, criteria.relative_scores):
        before, after = scores(net), scores(rescale(net))
        for g in before:
            np.testing.assert_allclose(before[g], after[g], rtol=1e-4)


def test_how_many_images_the_taylor_score_looks_at():
    assert [criteria.scoring_batches(n) * 16 for n in (30600, 3200, 1000, 24, 1)] == [3056, 320, 320, 32, 16]


@pytest.mark.slow
def test_taylor_score_is_the_squared_slope_of_the_loss(net):
    """Against central differences: scale and shift of one channel of each group, in all its norms, made e larger."""
    split, e = Noise(16), 2e-3
    batches = islice(enumerate(loop.Batches(split, 8, 0).since(0)), 2)
    scores = criteria.taylor_scores(steps.scoring_step(net, "classification"), batches)

    def losses_at(factor: float, group, channel: int) -> np.ndarray:
        arrays = {}
        for norm in group.norms:
            for name in net.norm_arrays(norm):
                arrays[name] = net.arrays[name].copy()
                arrays[name][channel] *= factor
        block = to_block(net.with_arrays(arrays), frozen_statistics=True)
        return np.array(
            [
                CLASSIFICATION.loss(block(mx.nd.array(x)), mx.nd.array(y), 0.0).mean().asscalar()
                for x, y, _ in split.batches(8, seed=0)
            ]
        )

    for group in net.groups:
        best = int(scores[group.name].argmax())
        slope = (losses_at(1 + e, group, best) - losses_at(1 - e, group, best)) / (2 * e)
        assert scores[group.name][best] == pytest.approx((slope**2).mean(), rel=0.05), group.name


@pytest.mark.slow
def test_taylor_scores_are_the_same_where_the_first_batch_has_the_block_built_anew(net, monkeypatch):
    """As it is on a machine whose kernels have no fused backward for these widths."""

    def scores():
        batches = islice(enumerate(loop.Batches(Noise(16), 8, 0).since(0)), 2)
        return criteria.taylor_scores(steps.scoring_step(net, "classification"), batches)

    whole, backward, calls = scores(), steps.OrdinaryStep._backward, []

    def fails_at_first(*args):
        calls.append(1)
        if len(calls) == 1:
            raise mx.MXNetError("no backward as one operator")
        return backward(*args)

    monkeypatch.setattr(steps.OrdinaryStep, "_backward", fails_at_first)
    monkeypatch.setattr(steps, "_TRIED", {})
    monkeypatch.setattr(steps, "_aligned", lambda net: False)
    again = scores()
    assert len(calls) == 3
    for name, values in whole.items():
        assert values.max() > 0
        np.testing.assert_array_equal(again[name], values)


def test_relative_score_of_equal_channels_grows_as_fewer_are_left(net):
    """Channels alike in everything: the r-th to go of n takes 1/(n-r) of what is left, the last one all of it."""
    g = next(g for g in net.groups if len(g.norms) == 1)
    gamma, weight = net.norm_arrays(g.norms[0])[0], net.weight(g.consumers[0])
    same = net.with_arrays({gamma: np.ones(g.size, np.float32), weight: np.ones_like(net.arrays[weight])})
    scores = np.sort(criteria.relative_scores(same)[g.name])
    np.testing.assert_allclose(scores, [1 / (g.size - r) for r in range(g.size)], rtol=1e-6)


# ---- selection -------------------------------------------------------------------------------------------------


COST = Cost([product(3.0, "a"), product(1.0, "a", "b"), product(2.0, "b"), product(5.0)])


def test_selection_drops_the_lowest_until_the_cost_is_met():
    rng = np.random.default_rng(0)
    for limit in (200, 120, 60, 20, 11):
        scores = {"a": rng.uniform(size=16), "b": rng.uniform(size=8)}
        keep = select.select(scores, COST, limit)
        left = {g: set(range(len(s))) for g, s in scores.items()}
        for _value, g, j in sorted((v, g, j) for g, s in scores.items() for j, v in enumerate(s)):
            if COST({k: len(v) for k, v in left.items()}) <= limit:
                break
            if len(left[g]) > 1:
                left[g].discard(j)
        widths = {g: len(k) for g, k in keep.items()}
        assert COST(widths) <= limit
        for g in left:  # the refill may bring single channels back, never more go
            assert left[g] <= set(keep[g].tolist())
            assert (np.diff(keep[g]) > 0).all()
        slow = COST({k: len(v) for k, v in left.items()})
        assert slow <= COST(widths)


@pytest.mark.parametrize("round_to", [2, 3, 8])
def test_rounded_widths_are_multiples_or_whole(round_to):
    scores = {"a": np.random.default_rng(1).uniform(size=16), "b": np.random.default_rng(2).uniform(size=7)}
    for limit in (180, 120, 90, 75):
        try:
            widths = {g: len(k) for g, k in select.select(scores, COST, limit, round_to).items()}
        except UserError as error:
            assert "cannot be reached" in str(error)
            least = {"a": min(16, round_to), "b": min(7, round_to)}
            assert COST(least) > limit
            continue
        assert COST(widths) <= limit
        for g, n in widths.items():
            assert n == len(scores[g]) or (n % round_to == 0 and n > 0)


def test_no_group_loses_more_than_max_cut_before_all_have():
    scores = {"a": np.arange(16.0), "b": 100 + np.arange(8.0)}  # all of b is above all of a
    everything = COST({"a": 16, "b": 8})
    assert len(select.select(scores, COST, 0.5 * everything)["a"]) < 8
    for fraction in (0.9, 0.6, 0.4, COST({"a": 8, "b": 4}) / everything):
        widths = {g: len(k) for g, k in select.select(scores, COST, fraction * everything, max_cut=0.5).items()}
        assert COST(widths) <= fraction * everything
        assert widths["a"] >= 8, "b has more to give"
    widths = {g: len(k) for g, k in select.select(scores, COST, 0.2 * everything, max_cut=0.5).items()}
    assert widths["a"] < 8, "when the limit asks for more, the rule gives way"
    kept = select.select(scores, COST, 0.4 * everything, max_cut=0.5)["a"]
    assert kept.tolist() == list(range(16 - len(kept), 16)), "the lowest go first"


def test_channels_that_cost_no_time_stay():
    class Stairs:
        """A staircase: widths that are no multiples of 4 take longer than the next multiple."""

        def __call__(self, widths):
            return sum(-(-n // 4) * 4 + (2 if n % 4 else 0) for n in widths.values())

    scores = {"a": np.arange(16.0), "b": np.arange(16.0) + 0.5}
    widths = {g: len(k) for g, k in select.select(scores, Stairs(), 22).items()}
    assert all(n % 4 == 0 for n in widths.values()) and Stairs()(widths) <= 22


def test_a_budget_says_the_lowest_reachable():
    budget = Budget(COST, COST({"a": 16, "b": 8}), 0.01, 4)
    with pytest.raises(UserError, match=r"at least 0\.2"):
        budget.check({"a": 16, "b": 8})
    assert COST({"a": 4, "b": 4}) / budget.original == pytest.approx(41 / 197)


def test_schedules_end_at_the_target():
    for schedule in ("equal", "geometric"):
        steps = [gcp_method.fraction_kept(t, 4, 0.2, schedule) for t in range(1, 5)]
        assert steps[-1] == pytest.approx(0.2) and steps == sorted(steps, reverse=True)
    assert gcp_method.fraction_kept(1, 4, 0.2, "equal") == pytest.approx(0.8)
    assert gcp_method.fraction_kept(2, 4, 0.0625, "geometric") == pytest.approx(0.25)


# ---- the whole -------------------------------------------------------------------------------------------------


class Noise:
    """A split of random images that keeps the interface of gcp.data.Split."""

    def __init__(self, n):
        self.x, self.y = np.random.default_rng(5).normal(size=(n, 3, 8, 8)).astype(np.float32), np.arange(n) % 4

    def __len__(self):
        return len(self.y)

    def n_batches(self, size):
        return -(-len(self.y) // size)

    def batches(self, size, *, seed=None, augment="none", part=(0, 1), first=0):
        for i in range(first * size, len(self.y), size):
            rows = np.arange(i, i + size) % len(self.y)
            yield self.x[rows], self.y[rows].astype(np.int32), min(size, len(self.y) - i)


def outcome_of(net, target, data, folder, seen=None, n_statistics=0, n_fitted=0, round_to=1, **options):
    """GCP by the contract of methods; `seen` gets the rows that are logged."""

    def log(event, **row):
        if seen is not None and event == "iteration":
            seen.append(row)

    cost = macs(net)
    budget = Budget(cost, cost(net.widths), target, round_to)
    problem = Problem(
        net, budget, data, seed=0, batch=8, statistics_images=n_statistics, reconstruction_images=n_fitted
    )
    options = {"score": "relative", "iterations": 2, "schedule": "equal", **options}
    outcome = METHODS["gcp"](problem, gcp_method.GcpOptions(**options), SimpleNamespace(path=folder, log=log))
    assert sum(outcome.images.values()) == sum(row["images"] for row in outcome.history)
    return outcome


def prune(net, target, data, folder, seen=None, **options):
    """The small network and its history; it has taken the images that the options say it will."""
    outcome = outcome_of(net, target, data, folder, seen, **options)
    said = gcp_method.GcpOptions(**{"score": "relative", "iterations": 2, "schedule": "equal", **options})
    assert sum(outcome.images.values()) == said.n_images(len(data.train), 8)
    return outcome.network, outcome.history


@pytest.mark.slow
@pytest.mark.parametrize("penalised, is_left", [("all", False), ("removable", True)])
def test_what_cannot_be_cut_need_not_be_penalised(net, tmp_path, penalised, is_left):
    """The first stage has the least width, and its channels cost most: the penalty takes their scales to zero."""
    data = SimpleNamespace(train=Noise(40), validation=Noise(24))
    options = {"iterations": 1, "lam": (3.0,), "recover_epochs": 0.0, "penalised": penalised}
    small = outcome_of(net, 0.8, data, tmp_path, round_to=16, **options).network
    first = [g for g in small.groups if net.widths[g.name] == 16]
    assert first and all(small.widths[g.name] == 16 for g in first)
    norms = [small.norm_arrays(norm)[0] for g in first for norm in g.norms]
    scales = np.concatenate([small.arrays[name].ravel() for name in norms])
    assert (scales.min() > 0) == is_left and ((scales == 0).mean() > 0.5) != is_left


@pytest.mark.parametrize("score", ["taylor", "paper", "relative"])
@pytest.mark.parametrize("network", ["tiny", pytest.param("net", marks=pytest.mark.slow)])
def test_gcp_meets_the_target_in_steps(network, tmp_path, score, request):
    net = request.getfixturevalue(network)
    data, cost, seen = SimpleNamespace(train=Noise(24), validation=Noise(20)), macs(net), []
    budget = Budget(cost, cost(net.widths), 0.3)
    small, rows = prune(net, 0.3, data, tmp_path, seen, score=score)
    assert cost(small.widths) <= 0.3 * budget.original
    assert [r["cost_kept"] <= limit for r, limit in zip(rows, (0.65, 0.3))] == [True, True]
    assert rows == seen and rows[0]["images"] == 2 * 24 + (2 * 16 if score == "taylor" else 0)
    assert macs(small)(small.widths) == cost(small.widths)


@pytest.mark.slow
@pytest.mark.parametrize("score", ["taylor", "paper", "relative"])
def test_gcp_again_is_bit_for_bit_the_same(net, tmp_path, score):
    data = SimpleNamespace(train=Noise(24), validation=Noise(20))
    small, again = (prune(net, 0.3, data, tmp_path, score=score)[0] for _ in range(2))
    assert all(np.array_equal(small.arrays[k], again.arrays[k]) for k in small.arrays)


def test_regularising_leaves_statistics_and_convs_bit_identical(net):
    net = rescale(net)
    step = steps.ProximalStep(net, losses.Objective(), {g.name: 0.1 for g in net.groups}, 0.9, seed=1)
    loop.fit(step, loop.Batches(Noise(24), 8, 1), schedules.constant(0.01, 6))
    trained = step.network()
    for k, v in net.arrays.items():
        assert np.array_equal(v, trained.arrays[k]) == (k not in network.scale_arrays(net)), k


@pytest.mark.slow
def test_the_search_takes_the_lam_of_lowest_validation_loss(net, tmp_path):
    data = SimpleNamespace(train=Noise(16), validation=Noise(20))
    outcome = outcome_of(net, 0.5, data, tmp_path, lam=(0.01, 3.0))
    rows, (study,) = outcome.history, outcome.searches
    best = min(study["trials"], key=lambda trial: trial["value"])
    assert [trial["values"] for trial in study["trials"]] == [{"lam": 0.01}, {"lam": 3.0}]
    assert {row["lam"] for row in rows} == {best["values"]["lam"]} and rows[0]["loss_recovered"] == best["value"]
    assert rows[0]["images"] == 2 * rows[1]["images"]
    assert sum(outcome.images.values()) == gcp_method.GcpOptions(
        score="relative", iterations=2, lam=(0.01, 3.0)
    ).n_images(16, 8)


@pytest.mark.slow
def test_weights_are_fitted_after_every_cut(net, tmp_path):
    """Two iterations at 8 images each, which decide no width of the first."""
    data, options = SimpleNamespace(train=Noise(24), validation=Noise(20)), dict(iterations=2, recover_epochs=0)
    outcome = outcome_of(net, 0.4, data, tmp_path / "fitted", n_fitted=8, **options)
    assert outcome.images["reconstruction"] == 16
    plain = outcome_of(net, 0.4, data, tmp_path / "plain", **options)
    assert "reconstruction" not in plain.images
    assert outcome.history[0]["loss_regularised"] == plain.history[0]["loss_regularised"]
    assert outcome.history[0]["widths"] == plain.history[0]["widths"]
    assert outcome.history[0]["loss_pruned"] != plain.history[0]["loss_pruned"]


@pytest.mark.slow
def test_images_are_counted_by_purpose_and_those_of_a_penalty_that_diverged_too(net, tmp_path, monkeypatch):
    data, fit, calls = SimpleNamespace(train=Noise(160), validation=Noise(20)), loop.fit, []

    def second_try_diverges(*args, **how):
        calls.append(how["name"])
        if len(calls) == 3:  # regularise and recover with the first penalty, regularise with the second
            error = optimisers.DivergedError("t: the loss is nan")
            error.steps = 4
            raise error
        return fit(*args, **how)

    monkeypatch.setattr(loop, "fit", second_try_diverges)
    options = dict(iterations=1, lam=(0.01, 3.0), score="taylor", regularise_epochs=0.5, recover_epochs=0.25)
    outcome = outcome_of(net, 0.5, data, tmp_path, n_statistics=20, **options)
    assert outcome.images == {"regularise": 80, "recover": 40, "scoring": 160, "statistics": 24, "search": 32}
    assert outcome.history[0]["images"] == 336
    assert [trial["state"] for trial in outcome.searches[0]["trials"]] == ["complete", "failed"]


def test_statistics_are_those_of_the_network_that_was_cut(net, tmp_path):
    """Whatever the method: uniform's network predicts better once they are recomputed, without any training."""
    cost, data = macs(net), SimpleNamespace(train=Noise(64), validation=Noise(20))
    problem = Problem(net, Budget(cost, cost(net.widths), 0.5), data, seed=0, batch=64)
    options = METHODS.options["uniform"]()
    without, with_new = (
        METHODS["uniform"](replace(problem, statistics_images=n), options, SimpleNamespace(path=tmp_path))
        for n in (0, 64)
    )
    assert with_new.images == {"statistics": 64} and without.images == {"statistics": 0}
    x = data.train.x[:8]
    with autograd.train_mode():
        trained = to_block(without.network)(mx.nd.array(data.train.x)).asnumpy()[:8]
    errors = [np.abs(predict(one.network, x) - trained).max() for one in (without, with_new)]
    assert errors[1] < 0.01 * errors[0]


@pytest.mark.slow
def test_scores_of_a_network_with_dropout_are_seeded():
    vgg = with_gates(from_gluoncv("vgg11", (3, 32, 32), 4, seed=0))
    assert any(n.op == "Dropout" for n in vgg.nodes)

    class Large(Noise):
        def batches(self, size, **how):
            for x, y, n in super().batches(size, **how):
                yield x.repeat(4, 2).repeat(4, 3), y, n

    cost = macs(vgg)
    problem = Problem(vgg, Budget(cost, cost(vgg.widths), 0.5), SimpleNamespace(train=Large(16)), seed=0, batch=8)
    scores = []
    for state in (1, 2):
        mx.random.seed(state)  # what a process did before decides nothing
        scores.append(criteria.CRITERIA["taylor"](problem))
    assert all(np.array_equal(scores[0][g], scores[1][g]) for g in scores[0])


@pytest.mark.slow
def test_masks_stand_in_where_no_norm_follows(tmp_path):
    """VGG's dense layers have no batch norm: GCP prunes them through masks, and none is left in the result."""
    vgg = from_gluoncv("vgg11_bn", (3, 32, 32), 4, seed=0)
    w = rescale(with_gates(vgg))
    dense = next(g for g in w.groups if g.name == "dense0")
    keep = {g.name: np.arange(g.size) for g in w.groups}
    keep["dense0"] = np.arange(0, dense.size, 64)
    x = images()[0].asnumpy().repeat(4, 2).repeat(4, 3)
    np.testing.assert_allclose(predict(silence(w, keep), x), predict(shrink(w, keep), x), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_recovering_may_train_all_weights(net, tmp_path):
    """Filters of the stem, by their directions: some of the dense network's where only scales are trained."""
    data, found = SimpleNamespace(train=Noise(24), validation=Noise(20)), {}
    for how in ("scales", "all"):
        (tmp_path / how).mkdir()
        small, _ = prune(net, 0.6, data, tmp_path / how, iterations=1, recover_weights=how, recover_lr=0.1)
        stem = net.groups[0].producers[0]
        mine, dense = (n.arrays[n.weight(stem)].reshape(-1, 27) for n in (small, net))
        unit = [w / np.linalg.norm(w, axis=1, keepdims=True) for w in (mine, dense)]
        found[how] = np.abs(unit[0] @ unit[1].T).max(1)
    assert (found["scales"] > 1 - 1e-5).all() and (found["all"] < 1 - 1e-5).all()

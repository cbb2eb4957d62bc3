"""Slimmable training: its gradients against narrow networks taken by themselves, what it draws, and kills."""

import mxnet as mx
import numpy as np
import pytest
from mxnet import autograd
from networks import built, random_network
from test_prune import Noise

from gcp.backend.blocks import to_block
from gcp.backend.zoo import from_gluoncv
from gcp.graph.surgery import cut
from gcp.train import loop, optimisers, schedules, slimmable, steps
from gcp.train.slimmable import Sampling, SlimmableStep
from gcp.train.tasks import CLASSIFICATION

N = 32  # images of a batch
NETWORKS = {
    "mobilenet0.25": (3, 32, 32),  # depthwise convolutions
    "cifar_resnet20_v1": (3, 8, 8),  # residual ties
    "mobilenetv2_0.25": (3, 32, 32),
}


def joined():
    """Concatenations, of which a narrow layer reads not the first inputs; and dense layers."""
    x = mx.sym.Convolution(mx.sym.var("data"), num_filter=8, kernel=(3, 3), pad=(1, 1), name="stem")
    x = mx.sym.relu(mx.sym.BatchNorm(x, fix_gamma=False, name="norm"))
    parts = [mx.sym.Convolution(x, num_filter=n, kernel=(1, 1), name=f"part{n}") for n in (12, 8)]
    x = mx.sym.relu(mx.sym.Convolution(mx.sym.concat(*parts, dim=1), num_filter=12, kernel=(3, 3), name="joined"))
    x = mx.sym.relu(mx.sym.FullyConnected(mx.sym.flatten(x), num_hidden=16, name="dense"))
    return mx.sym.FullyConnected(x, num_hidden=4, name="last")


def sampling(net, **how):
    levels = {g.name: sorted({max(1, g.size // 4), max(1, g.size // 2), g.size}) for g in net.groups}
    return Sampling(levels, **how)


def gradients(net, x, loss_of):
    """The output of a network on its own, and its gradients of a loss, as they are in the whole network."""
    block = to_block(net)
    with autograd.record():
        output = block(mx.nd.array(x))
        loss = loss_of(output)
    loss.backward()
    mx.nd.waitall()
    return output, {k: p.grad().asnumpy() for k, p in block.collect_params().items() if p.grad_req != "null"}, loss


def padded(gradient, kept, shape):
    """A narrow array's gradient among zeros for the entries that it lacks."""
    total = np.zeros(shape, np.float64)
    total[np.ix_(*[kept.get(axis, np.arange(n)) for axis, n in enumerate(shape)])] = gradient
    return total


@pytest.mark.parametrize("width", [None, 16])
@pytest.mark.parametrize("name", [*(pytest.param(name, marks=pytest.mark.slow) for name in NETWORKS), "joined"])
def test_gradients_are_those_of_three_networks_taken_by_themselves(name, width, monkeypatch):
    """Of the widest on a part of the batch, and of two narrow ones on what it says and on the other labels."""
    monkeypatch.setattr(steps.OrdinaryStep, "width", width)
    net = random_network(name, NETWORKS[name], 4) if name in NETWORKS else built(joined(), (3, 6, 6))
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(N, *net.input_shape)).astype(np.float32), rng.integers(0, 4, N)
    how = sampling(net, share=0.5)
    step = SlimmableStep(net, CLASSIFICATION, lambda block: optimisers.SGD(block), how, seed=3)
    chosen = dict(zip(how.levels, step.choice(0)))

    labels = mx.nd.array(y)
    taught, of_widest, reference = gradients(net, x[: N // 2], lambda out: CLASSIFICATION.loss(out, labels[: N // 2]))
    total = {k: 2.0 * of for k, of in of_widest.items()}  # half of the images stand for all

    def loss_of(out):
        first = CLASSIFICATION.distilled_loss(out[: N // 2], taught, 1.0)
        return mx.nd.concat(first, CLASSIFICATION.loss(out[N // 2 :], labels[N // 2 :]), dim=0)

    for levels in (chosen, dict.fromkeys(chosen, 0)):
        small, kept = cut(net, {g: range(how.levels[g][k]) for g, k in levels.items()})
        out, found, loss = gradients(small, x, loss_of)
        if levels is chosen:
            lost = CLASSIFICATION.loss(out[: N // 2], labels[: N // 2]).mean().asscalar() - reference.mean().asscalar()
            random_loss = loss.asnumpy()
        for k, of in found.items():
            total[k] = total[k] + padded(of, kept.get(k, {}), net.arrays[k].shape)

    got = step(mx.nd.array(x), mx.nd.array(y), 0, 1.0)
    np.testing.assert_allclose(got.asnumpy(), random_loss, rtol=2e-3, atol=1e-4)
    after = step.network()
    for k, of in total.items():
        moved = (net.arrays[k].astype(np.float64) - after.arrays[k]) * N  # one step of rate 1, over N images
        np.testing.assert_allclose(moved, of, atol=2e-3 * np.abs(of).max() + 1e-3, err_msg=k)
    drawn = step.drawn()
    assert drawn.levels.tolist() == [list(chosen.values())] and drawn.differences == pytest.approx([lost], abs=1e-3)


def fit(net, how, n_steps=12, **where):
    step = SlimmableStep(net, CLASSIFICATION, lambda block: optimisers.SGD(block, 0.9, 1e-4), how, 1)
    loop.fit(step, loop.Batches(Noise(20), 8, 1), schedules.constant(0.01, n_steps), name="t", **where)
    return step


@pytest.mark.parametrize("name", [pytest.param("cifar_resnet20_v1", marks=pytest.mark.slow), "joined"])
def test_operators_train_the_same_as_numpy_in_memory(name, monkeypatch):
    net = random_network(name, NETWORKS[name], 4) if name in NETWORKS else built(joined(), (3, 6, 6))
    x, y = np.random.default_rng(0).normal(size=(8, *net.input_shape)).astype(np.float32), np.arange(8) % 4

    def trained(has_memory):
        monkeypatch.setattr(slimmable._Pair, "has_memory", has_memory)
        step = SlimmableStep(net, CLASSIFICATION, lambda block: optimisers.SGD(block, 0.9, 1e-4), sampling(net, hold=2))
        for i in range(4):
            step(mx.nd.array(x), mx.nd.array(y), i, 0.1)
        return step.network().arrays

    ours, theirs = trained(True), trained(False)
    assert all(np.array_equal(ours[k], theirs[k]) for k in ours)
    assert any(not np.array_equal(ours[k], net.arrays[k]) for k in ours)


def towards_narrow(seen=None):
    """A policy that depends on all that was drawn so far."""

    def policy(step, drawn):
        if seen is not None:
            seen.append((step, len(drawn.levels)))
        p = 0.5 + 0.4 * np.tanh(drawn.differences.sum() + drawn.levels.sum())
        return {g: np.array([p, (1 - p) / 2, (1 - p) / 2]) for g in NET_GROUPS}

    return policy


NET = from_gluoncv("cifar_resnet20_v1", (3, 8, 8), 4, seed=3)
NET_GROUPS = list(NET.widths)


@pytest.mark.slow
def test_killed_training_resumes_to_the_same_bits_and_history(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "CHECKPOINT_S", 0.0)
    monkeypatch.setattr(loop, "FLUSH", 2)
    seen = []
    whole = fit(NET, sampling(NET, hold=2, renew=4, policy=towards_narrow(seen)))
    assert seen == [(0, 0), (4, 4), (8, 8)]  # each time all that was drawn before, however much was pending
    how, checkpoint, update = (
        sampling(NET, hold=2, renew=4, policy=towards_narrow()),
        tmp_path / "c",
        optimisers.SGD.step,
    )
    for fatal in (6, 4):
        count = [0]

        def dying(self, lr, batch, fatal=fatal, count=count):
            count[0] += 1
            if count[0] == fatal:
                raise KeyboardInterrupt
            update(self, lr, batch)

        monkeypatch.setattr(optimisers.SGD, "step", dying)
        with pytest.raises(KeyboardInterrupt):
            fit(NET, how, checkpoint=checkpoint)
    monkeypatch.setattr(optimisers.SGD, "step", update)
    resumed = fit(NET, how, checkpoint=checkpoint)
    a, b = whole.network().arrays, resumed.network().arrays
    # Running statistics are those of the widest alone, which trains on all steps.
    assert all(np.array_equal(a[k], b[k]) for k in a)
    assert np.array_equal(whole.drawn().levels, resumed.drawn().levels)
    assert np.array_equal(whole.drawn().differences, resumed.drawn().differences)


def test_widths_are_drawn_anew_every_so_many_steps_and_by_the_policy():
    how = sampling(
        NET, hold=3, renew=6, policy=lambda i, drawn: {g: np.array([0, 1, 0]) for g in NET_GROUPS} if i else None
    )
    step = SlimmableStep(NET, CLASSIFICATION, lambda block: optimisers.SGD(block), how, seed=1)
    rows = np.array([step.choice(i) for i in range(12)])
    assert (rows[6:] == 1).all() and len(np.unique(rows[:6], axis=0)) == 2
    assert (rows[:3] == rows[0]).all() and (rows[3:6] == rows[3]).all()
    other = SlimmableStep(NET, CLASSIFICATION, lambda block: optimisers.SGD(block), how, seed=2)
    assert (other.choice(0) != rows[0]).any()

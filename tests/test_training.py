"""The training loop, evaluation and stages."""

import json
from dataclasses import replace

import mxnet as mx
import numpy as np
import pytest
from mxnet import autograd
from networks import built, difference, images, random_keep, random_network

from gcp.backend.blocks import predict, to_block
from gcp.backend.files import load_arrays, save_arrays
from gcp.backend.zoo import from_gluoncv
from gcp.errors import UserError
from gcp.graph.network import Network, Node, auxiliary
from gcp.graph.surgery import padded, shrink
from gcp.train import checkpoints, loop, losses, optimisers, schedules, statistics, steps
from gcp.train.tasks import CLASSIFICATION, Classification
from tests.test_prune import Noise


@pytest.fixture(scope="module")
def net():
    return from_gluoncv("cifar_resnet20_v1", (3, 8, 8), 4, seed=3)


def fit(
    net,
    n_steps=7,
    split=None,
    schedule=None,
    optimiser=lambda block: optimisers.SGD(block, 0.9, 1e-4),
    batch=8,
    seed=1,
    kind=steps.OrdinaryStep,
    objective=losses.Objective(),
    **how,
):
    """A training of random images: (the network, its loss)."""
    step = kind(net, objective, optimiser, seed)
    batches = loop.Batches(split or Noise(20), batch, seed)
    loss = loop.fit(step, batches, schedule or schedules.cosine(0.05, n_steps, 2), name="t", **how)
    return step.network(), loss


def test_cosine_by_hand():
    lr = schedules.cosine(0.4, 12, 2)
    assert [lr(0), lr(1), lr(2)] == pytest.approx([0.2, 0.4, 0.4])
    assert lr(7) == pytest.approx(0.2) and lr(11) < 0.02


def test_steps_by_hand():
    lr = schedules.steps(0.4, 8, [4, 6], 0.1, 2)
    assert [lr(i) for i in range(8)] == pytest.approx([0.2, 0.4, 0.4, 0.4, 0.04, 0.04, 0.004, 0.004])


def test_evaluation_counts_the_short_last_batch_once(net):
    split = Noise(13)
    got = CLASSIFICATION.evaluate(net, split, batch=5)
    out = predict(net, split.x).astype(np.float64)
    log_p = out - out.max(1, keepdims=True)
    log_p -= np.log(np.exp(log_p).sum(1, keepdims=True))
    assert got["n_eval"] == 13
    assert got["top1"] == (out.argmax(1) == split.y).mean()
    assert got["top5"] == 1.0  # four classes
    assert got["loss"] == pytest.approx(-log_p[np.arange(13), split.y].mean(), rel=1e-5)


def test_equal_outputs_count_once(net):
    """A network that says the same for every class is right for class 0 only, as argmax would have it."""
    flat = net.with_arrays({k: np.zeros_like(net.arrays[k]) for k in ("dense0_weight", "dense0_bias")})
    assert CLASSIFICATION.evaluate(flat, Noise(20))["top1"] == 0.25


def test_what_is_no_number_is_never_right():
    output = np.array([[1.0, 2.0], [np.nan, np.nan], [np.nan, 1.0], [2.0, 1.0]])
    n, top1, top5, _ = Classification._sums(output, np.array([1, 0, 1, 1]))
    assert (n, top1, top5) == (4, 1, 2)


@pytest.mark.parametrize("half", [False, True])
def test_a_state_is_on_the_device_that_trains(half, monkeypatch):
    """MXNet refuses to check arrays of several devices together; another CPU stands for a GPU."""
    for module in (steps, optimisers):
        monkeypatch.setattr(module, "device", lambda: mx.cpu(1))
    net = random_network("cifar_resnet20_v1", (3, 8, 8), 4)
    kind = optimisers.MixedSGD if half else optimisers.SGD
    step = steps.OrdinaryStep(net, losses.Objective(CLASSIFICATION), lambda block: kind(block, 0.9), 0)
    assert {value.context for value in step.state().values()} == {mx.cpu(1)}


def test_training_is_sgd_with_momentum_and_decay_on_weights(net):
    """Two steps of the loop against two steps written out."""
    split = Noise(16)
    trained, _ = fit(net, 2, split, schedules.constant(0.1, 2), lambda block: optimisers.SGD(block, 0.9, 0.01))
    block = to_block(net)
    value = {k: p.data().asnumpy() for k, p in block.collect_params().items() if p.grad_req != "null"}
    velocity = {k: 0.0 for k in value}
    for x, y, _ in split.batches(8):
        with autograd.record():
            loss = mx.gluon.loss.SoftmaxCELoss()(block(mx.nd.array(x)), mx.nd.array(y))
        loss.backward()
        for k, p in block.collect_params().items():
            if k in value:
                decay = 0.01 * value[k] if k.endswith("weight") else 0.0
                velocity[k] = 0.9 * velocity[k] - 0.1 * (p.grad().asnumpy() / 8 + decay)
                value[k] = value[k] + velocity[k]
                p.set_data(mx.nd.array(value[k]))
    for k in value:
        np.testing.assert_allclose(trained.arrays[k], value[k], rtol=1e-3, atol=1e-5, err_msg=k)


def test_label_smoothing_by_hand():
    import mxnet as mx

    out, y = mx.nd.array([[1.0, 2.0, 0.0]]), mx.nd.array([1])
    p = np.exp([1, 2, 0]) / np.exp([1, 2, 0]).sum()
    by_hand = -0.9 * np.log(p[1]) - 0.1 * np.log(p).mean()
    assert CLASSIFICATION.loss(out, y, 0.1).asscalar() == pytest.approx(by_hand, rel=1e-5)


RECIPES = {
    "plain": lambda net: {},
    "all": lambda net: {
        "schedule": schedules.steps(0.05, 7, [4], 0.1, 2),
        "objective": losses.Objective(
            CLASSIFICATION, 0.1, 0.2, losses.Teacher(random_network("cifar_resnet20_v1", (3, 8, 8), 4), 0.5, 2.0)
        ),
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_killed_training_resumes_to_the_same_bits(net, tmp_path, monkeypatch, recipe):
    """And each epoch is told, with the same loss and rate, however often some of them were run."""
    monkeypatch.setattr(loop, "CHECKPOINT_S", 0.0)
    monkeypatch.setattr(loop, "FLUSH", 2)
    how, told, again = RECIPES[recipe](net), [], []
    whole, loss = fit(net, log=lambda **facts: told.append(facts), **how)
    checkpoint = tmp_path / "c"
    step = optimisers.SGD.step
    for fatal in (5, 3):  # killed twice, the second time in another epoch than the first
        count = [0]

        def dying(self, lr, batch, fatal=fatal, count=count):
            count[0] += 1
            if count[0] == fatal:
                raise KeyboardInterrupt
            step(self, lr, batch)

        monkeypatch.setattr(optimisers.SGD, "step", dying)
        with pytest.raises(KeyboardInterrupt):
            fit(net, checkpoint=checkpoint, log=lambda **facts: again.append(facts), **how)
        assert checkpoint.exists()
    monkeypatch.setattr(optimisers.SGD, "step", step)
    resumed, resumed_loss = fit(net, checkpoint=checkpoint, log=lambda **facts: again.append(facts), **how)
    assert loss == resumed_loss
    assert all(np.array_equal(whole.arrays[k], resumed.arrays[k]) for k in whole.arrays)
    assert [(f["epoch"], f["step"]) for f in told] == [(1, 3), (2, 6), (7 / 3, 7)]
    told, again = ({(f["epoch"], f["training_loss"], f["lr"]) for f in facts} for facts in (told, again))
    assert told == again


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, widths",
    [
        ("resnet18_v1b", [8, 16, 16, 8, 16, 16, 8, 16, 16, 8, 16, 16]),
        ("resnet18_v1b", [16] * 12),
        ("cifar_resnet20_v1", [12, 8, 4, 8, 32, 24, 16, 12, 56, 36, 28, 16]),
    ],
)
def test_a_block_trains_whatever_kernels_there_are(name, widths):
    """Widths of 8 and 16 in turns have no fused backward on AVX-512, the last ones one with wrong gradients.

    The block does without, and nothing has moved.
    """
    dense = random_network(name)
    net = shrink(dense, {g.name: np.arange(n) for g, n in zip(dense.groups, widths)})
    x, y = mx.nd.array(images(net, 4)), mx.nd.array([0, 1, 2, 3])
    step, block = steps.OrdinaryStep(net, losses.Objective(), optimisers.SGD), to_block(net)
    step.outputs(images(net, 2))  # a network can be looked at before it is trained
    step.backward(x, y, 0, 0)
    with autograd.record():
        loss = CLASSIFICATION.loss(block(x), y)
    loss.backward()
    mx.nd.waitall()
    blocks = [step.block, block]
    for name in net.arrays:
        values = [b.collect_params()[name].data().asnumpy() for b in blocks]
        np.testing.assert_array_equal(*values, err_msg=name)
    one, two = ({k: p.grad().asnumpy() for k, p in b.collect_params().items() if p.grad_req != "null"} for b in blocks)
    for name in one:
        np.testing.assert_array_equal(one[name], two[name], err_msg=name)


IDLE = ["cifar_resnet20_v1", *(pytest.param(n, marks=pytest.mark.slow) for n in ("mobilenetv2_0.25", "se_resnet18_v1"))]


@pytest.mark.slow
@pytest.mark.parametrize("name", IDLE)
def test_idle_channels_change_nothing_and_stay_idle(name, monkeypatch):
    """Groups filled up to 16 channels, as on AVX-512, train to the same network as without, up to rounding."""
    dense = random_network(name)
    net, trained = shrink(dense, random_keep(dense, 0.7)), []
    wide, places = padded(net, 16)
    assert all(width % 16 == 0 for width in wide.widths.values()) and places
    assert difference(predict(wide, images(net)), predict(net, images(net))) < 1e-5
    for width in (1, 16):
        monkeypatch.setattr(steps, "kernel_width", lambda: width)
        step = steps.OrdinaryStep(net, losses.Objective(), lambda block: optimisers.SGD(block, 0.9, 1e-2))
        for i in range(2):
            step(mx.nd.array(images(net, 16, i)), mx.nd.arange(16) % 7, i, 1e-3)
        trained.append(step.network())
    values = {k: p.data().asnumpy() for k, p in step.block.collect_params().items()}
    for name, place in places.items():
        idle = values[name].copy()
        idle[place] = 0
        assert not idle.any() or "running_var" in name, name
    moved = np.concatenate([(trained[0].arrays[k] - net.arrays[k]).ravel() for k in sorted(net.arrays)])
    apart = np.concatenate([(trained[0].arrays[k] - trained[1].arrays[k]).ravel() for k in sorted(net.arrays)])
    assert 0 < np.linalg.norm(apart) < 1e-3 * np.linalg.norm(moved)


@pytest.mark.slow
def test_what_a_shuffle_or_groups_tie_is_not_filled_up():
    for name, side in (("shufflenet_v2", 32), ("cifar_resnext29_32x4d", 8)):
        net = random_network(name, (3, side, side))
        net = shrink(net, random_keep(net, 0.7))
        wide, _ = padded(net, 16)
        assert difference(predict(wide, images(net)), predict(net, images(net))) < 1e-5
        assert any(n == net.widths[g] and n % 16 for g, n in wide.widths.items())


@pytest.mark.slow
@pytest.mark.parametrize("kernel_width", [1, 16])
def test_a_checkpoint_is_taken_over_from_a_machine_with_other_kernels(net, kernel_width, monkeypatch):
    net = shrink(net, random_keep(net, 0.7))
    x, y = mx.nd.array(images(net, 8)), mx.nd.arange(8) % 4
    monkeypatch.setattr(steps, "kernel_width", lambda: kernel_width)
    there = steps.OrdinaryStep(net, losses.Objective(), optimisers.SGD)
    there(x, y, 0, 0.1)
    state = {k: v.asnumpy() for k, v in there.state().items()}
    monkeypatch.setattr(steps, "kernel_width", lambda: 17 - kernel_width)
    here = steps.OrdinaryStep(net, losses.Objective(), optimisers.SGD)
    here.restore(state)
    for step in (there, here):
        step(x, y, 1, 0.1)
    assert all(np.array_equal(v, here.network().arrays[k]) for k, v in there.network().arrays.items())


def test_joined_channels_train_at_any_width():
    """MXNet's own backward of a concatenation fails where a part ends within a block of channels."""
    image = mx.sym.var("data")
    parts = [mx.sym.Convolution(image, num_filter=n, kernel=(3, 3), pad=(1, 1), name=f"part{n}") for n in (19, 5)]
    joined = mx.sym.Convolution(mx.sym.Concat(*parts), num_filter=16, kernel=(3, 3), name="after")
    pooled = mx.sym.Pooling(joined, global_pool=True, pool_type="avg")
    net = built(mx.sym.FullyConnected(pooled, num_hidden=3, name="out"), (3, 8, 8))
    x, y, block = images(net, 4), mx.nd.array([0, 1, 2, 0]), to_block(net)
    with autograd.record():
        loss = CLASSIFICATION.loss(block(mx.nd.array(x)), y)
    loss.backward()
    gradient = block.collect_params()["part19_weight"].grad().asnumpy()
    norm, losses_at = np.linalg.norm(gradient), []
    for step in (0.01, -0.01):  # along its own gradient the loss changes by the gradient's norm
        moved = net.arrays["part19_weight"] + step * gradient / norm
        out = predict(net.with_arrays({"part19_weight": moved}), x)
        losses_at.append(CLASSIFICATION.loss(mx.nd.array(out), y).sum().asscalar())
    assert (losses_at[0] - losses_at[1]) / 0.02 == pytest.approx(norm, rel=0.02)


@pytest.mark.slow
def test_dropout_is_reproducible():
    vgg = from_gluoncv("vgg11", (3, 32, 32), 4, seed=0)

    class Large(Noise):
        def batches(self, size, **how):
            for x, y, n in super().batches(size, **how):
                yield x.repeat(4, 2).repeat(4, 3), y, n

    def once():
        return fit(vgg, 2, Large(8), schedules.constant(0.01, 2), optimisers.SGD, batch=4)[0]

    a, b = once(), once()
    assert all(np.array_equal(a.arrays[k], b.arrays[k]) for k in a.arrays)


def test_an_infinite_loss_names_its_step(net, monkeypatch):
    monkeypatch.setattr(loop, "FLUSH", 4)
    backward, calls = steps.OrdinaryStep.backward, []

    def third_is_infinite(*args):
        calls.append(1)
        return backward(*args) * (np.inf if len(calls) == 3 else 1.0)

    monkeypatch.setattr(steps.OrdinaryStep, "backward", third_is_infinite)
    with pytest.raises(optimisers.DivergedError, match=r"^t: the loss is inf at step 3 of 6;") as caught:
        fit(net, 6, Noise(48), schedules.constant(0.01, 6), optimisers.SGD, seed=0)
    assert caught.value.steps == 4, "those that were made before anybody looked"


def test_a_step_that_gives_up_is_counted(net, monkeypatch):
    # As with float16, whose optimiser gives up where gradients overflow at every loss scale.
    update, calls = optimisers.SGD.step, []

    def third_gives_up(*args):
        calls.append(1)
        if len(calls) == 3:
            raise optimisers.DivergedError("gradients overflow")
        update(*args)

    monkeypatch.setattr(optimisers.SGD, "step", third_gives_up)
    with pytest.raises(optimisers.DivergedError, match="gradients overflow") as caught:
        fit(net, 6, Noise(48), schedules.constant(0.01, 6), optimisers.SGD, seed=0)
    assert caught.value.steps == 3


def test_swallowed_nans_are_found_and_the_checkpoint_is_kept(net, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "CHECKPOINT_S", 0.0)
    monkeypatch.setattr(loop, "FLUSH", 2)
    poisoned = Noise(48)
    poisoned.x[41] = np.nan  # in the sixth batch of 8
    checkpoint = tmp_path / "c"
    with pytest.raises(optimisers.DivergedError, match=r"t: weights are no longer finite after step 6 of 6"):
        fit(net, 6, poisoned, schedules.constant(0.01, 6), optimisers.SGD, seed=0, checkpoint=checkpoint)
    assert checkpoint.exists()


def test_a_result_is_computed_once(net, tmp_path):
    calls = []

    def compute(checkpoint):
        checkpoint.write_bytes(b"")
        calls.append(1)
        return net, {"a": 1}

    first, second = checkpoints.run_once(tmp_path / "s", compute), checkpoints.run_once(tmp_path / "s", compute)
    assert calls == [1] and first[1] == second[1] == {"a": 1}
    assert all(np.array_equal(net.arrays[k], second[0].arrays[k]) for k in net.arrays)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["s-0000.params", "s-symbol.json", "s.json"]
    assert json.loads((tmp_path / "s.json").read_text()) == {"a": 1}
    (tmp_path / "s.checkpoint").write_bytes(b"")  # by a process that was killed once it had saved the result
    checkpoints.run_once(tmp_path / "s", compute)
    assert calls == [1] and not (tmp_path / "s.checkpoint").exists()


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_bytes(path.read_bytes()[:-1])])
def test_a_result_whose_network_is_damaged_says_what_to_remove(net, tmp_path, damage):
    checkpoints.run_once(tmp_path / "s", lambda checkpoint: (net, {}))
    damage(tmp_path / "s-0000.params")
    with pytest.raises(UserError, match="s-0000.params.*; remove '.*/s.json', and it will be computed again"):
        checkpoints.run_once(tmp_path / "s", lambda checkpoint: (net, {}))


def test_a_checkpoint_that_cannot_be_resumed_from_is_named(net, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "CHECKPOINT_S", 0.0)
    monkeypatch.setattr(loop, "FLUSH", 1)
    checkpoint = tmp_path / "c"
    fit(net, 2, checkpoint=checkpoint)
    saved = load_arrays(checkpoint)
    save_arrays(checkpoint, {key: value for key, value in saved.items() if key != "losses"})
    for part in ("losses", "cut off"):
        with pytest.raises(
            UserError, match=f"c' is not a checkpoint of this training .*{part}.*; remove it, and t begins"
        ):
            fit(net, 2, checkpoint=checkpoint)
        checkpoint.write_bytes(checkpoint.read_bytes()[:-1])


# Statistics


def test_statistics_of_one_batch_are_what_training_normalises_by():
    net = random_network("cifar_resnet20_v1", (3, 8, 8), 4)
    split = Noise(16)
    new = statistics.recompute_statistics(net, loop.Batches(split, 16, 0), 1)
    with autograd.train_mode():
        expected = to_block(net)(mx.nd.array(split.x)).asnumpy()
    np.testing.assert_allclose(predict(new, split.x), expected, rtol=1e-3, atol=1e-4)
    assert np.abs(predict(net, split.x) - expected).max() > 0.1
    changed = {k for k in net.arrays if not np.array_equal(net.arrays[k], new.arrays[k])}
    assert changed and changed <= auxiliary(net), "nothing but running statistics"


def test_statistics_of_several_batches_are_those_of_all_their_images():
    """Exactly so at the first norm, which reads a convolution of the images alone."""
    net, split = random_network("cifar_resnet20_v1", (3, 8, 8), 4), Noise(24)
    new = statistics.recompute_statistics(net, loop.Batches(split, 8, 0), 3)
    norm = next(n for n in net.nodes if n.op == "BatchNorm")
    x = predict(replace(net, outputs=norm.inputs[:1]), split.x).astype(np.float64)
    mean, variance = (new.arrays[net.nodes[j].name] for j, _ in norm.inputs[3:])
    np.testing.assert_allclose(mean, x.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(variance, x.var((0, 2, 3)), rtol=1e-4)


def test_statistics_that_are_not_finite_are_a_divergence():
    net = random_network("cifar_resnet20_v1", (3, 8, 8), 4)
    weight = net.weight(next(n.name for n in net.nodes if n.op == "Convolution"))
    broken = net.with_arrays({weight: np.full_like(net.arrays[weight], 1e30)})
    with pytest.raises(optimisers.DivergedError, match="no longer finite"):
        statistics.recompute_statistics(broken, loop.Batches(Noise(8), 8, 0), 1)


# Mixup and distillation


def first_pixels(x):
    """A block whose outputs are easy to follow: the first four numbers of each image."""
    return x.reshape((len(x), -1))[:, :4]


def cross_entropy(output, labels, smoothing):
    log_p = output - np.log(np.exp(output).sum(1, keepdims=True))
    target = np.eye(4)[labels] * (1 - smoothing) + smoothing / 4
    return -(target * log_p).sum(1)


def test_mixed_images_have_mixed_labels():
    split = Noise(5)
    objective = losses.Objective(label_smoothing=0.1, mixup=0.5)
    got = objective(first_pixels, mx.nd.array(split.x), mx.nd.array(split.y), 3, 7).asnumpy()
    lam, partner = losses.mixup_share(0.5, 3, 7), np.array([1, 0, 3, 2, 4])
    output = (lam * split.x + (1 - lam) * split.x[partner]).reshape(5, -1)[:, :4]
    by_hand = lam * cross_entropy(output, split.y, 0.1) + (1 - lam) * cross_entropy(output, split.y[partner], 0.1)
    np.testing.assert_allclose(got, by_hand, rtol=1e-5)


def test_a_divided_batch_is_mixed_as_a_whole_one():
    x, y = mx.nd.array(Noise(8).x), mx.nd.array(Noise(8).y)
    objective = losses.Objective(mixup=1.0)
    whole = objective(first_pixels, x, y, 0, 5).asnumpy()
    parts = [objective(first_pixels, x[half], y[half], 0, 5).asnumpy() for half in (slice(0, 4), slice(4, 8))]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_shares_come_from_beta_by_seed_and_step():
    shares = np.array([losses.mixup_share(0.2, 1, step) for step in range(2000)])
    assert shares[3] == losses.mixup_share(0.2, 1, 3) != losses.mixup_share(0.2, 2, 3)
    assert shares.mean() == pytest.approx(0.5, abs=0.03)
    assert shares.var() == pytest.approx(0.25 / 1.4, abs=0.01)  # 1 / (4 (2 alpha + 1))
    assert losses.mixup_share(0.0, 1, 3) == 1.0


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_distillation_by_hand(temperature):
    rng = np.random.default_rng(0)
    z, t = rng.normal(size=(3, 4)), rng.normal(size=(3, 4))
    output = mx.nd.array(z)
    output.attach_grad()
    with autograd.record():
        loss = CLASSIFICATION.distilled_loss(output, mx.nd.array(t), temperature)
    loss.backward()
    q, p = (np.exp(a / temperature) / np.exp(a / temperature).sum(1, keepdims=True) for a in (z, t))
    np.testing.assert_allclose(loss.asnumpy(), temperature**2 * (p * np.log(p / q)).sum(1), rtol=1e-3)
    np.testing.assert_allclose(output.grad.asnumpy(), temperature * (q - p), rtol=1e-4, atol=1e-6)
    assert np.abs(CLASSIFICATION.distilled_loss(output, output, temperature).asnumpy()).max() < 1e-6


def test_the_teacher_predicts_on_the_mixed_images_and_learns_nothing():
    teacher = random_network("cifar_resnet20_v1", (3, 8, 8), 4)
    before = {k: v.copy() for k, v in teacher.arrays.items()}
    x, y = Noise(6).x, Noise(6).y
    objective = losses.Objective(mixup=0.5, teacher=losses.Teacher(teacher, 1.0, 2.0))
    got = objective(first_pixels, mx.nd.array(x), mx.nd.array(y), 3, 7).asnumpy()
    lam = losses.mixup_share(0.5, 3, 7)
    mixed = (lam * x + (1 - lam) * x[[1, 0, 3, 2, 5, 4]]).astype(np.float32)
    wanted = CLASSIFICATION.distilled_loss(first_pixels(mx.nd.array(mixed)), mx.nd.array(predict(teacher, mixed)), 2.0)
    np.testing.assert_allclose(got, wanted.asnumpy(), rtol=1e-3)
    held = objective.teacher.block.collect_params()
    assert all(np.array_equal(held[k].data().asnumpy(), v) for k, v in before.items())


@pytest.mark.parametrize(
    "name",
    [
        "resnet18_v1b",
        "resnet50_v1d",
        "resnet50_v2",
        "cifar_resnet20_v1",
        "mobilenet1.0",
        "mobilenetv2_1.0",
        "vgg11_bn",
        "squeezenet1.0",
    ],
)
def test_weight_decay_is_for_the_weights_of_layers(name):
    net = from_gluoncv(name, (3, 32, 32) if "cifar" in name else (3, 224, 224))
    weights = {net.weight(n.name) for n in net.nodes if n.op in ("Convolution", "FullyConnected")}
    assert {k for k in net.arrays if k.endswith("weight")} == weights


# float16


class Held:
    """Parameters without a network, as an optimiser sees a block."""

    def __init__(self, **values):
        self.params = mx.gluon.ParameterDict("")
        for name, value in values.items():
            p = self.params.get(name, shape=value.shape, dtype=value.dtype)
            p.initialize(mx.init.Zero())
            p.set_data(mx.nd.array(value, dtype=value.dtype))

    def collect_params(self):
        return self.params

    def give(self, **gradients):
        for name, value in gradients.items():
            self.params[name].grad()[:] = mx.nd.array(value, dtype=self.params[name].dtype)

    def values(self):
        return {k: p.data().asnumpy() for k, p in self.params.items()}


def test_masters_are_updated_in_float32():
    """Steps too small for float16 near 1, against numpy; the scale of the loss is divided out, only weights decay."""
    w, gamma = np.array([1.0001, -1.0002], np.float32), np.array([1.0], np.float32)
    block = Held(w_weight=w.astype(np.float16), gamma=gamma)
    opt = optimisers.MixedSGD(block, 0.9, 0.01)
    opt.masters["w_weight"][:] = w
    v_w, v_gamma = np.zeros(2), np.zeros(1)
    for _ in range(9):
        g = np.array([0.5, -0.25], np.float16)
        block.give(w_weight=g * 128, gamma=[128 * 0.5])
        opt.step(1e-4, 4)
        v_w = 0.9 * v_w - 1e-4 * (g / 4 + 0.01 * w)
        v_gamma = 0.9 * v_gamma - 1e-4 * 0.5 / 4
        w, gamma = w + v_w, gamma + v_gamma
    np.testing.assert_allclose(opt.masters["w_weight"].asnumpy(), w, rtol=1e-6)
    np.testing.assert_allclose(block.values()["gamma"], gamma, rtol=1e-6)
    np.testing.assert_array_equal(block.values()["w_weight"], opt.masters["w_weight"].asnumpy().astype(np.float16))
    assert abs(w[0] - 1.0001) > 3e-4, "lost, had each step been rounded to float16"


@pytest.mark.parametrize("half", [False, True])
def test_nesterov_by_hand(half):
    """Momentum is looked ahead along: w + m v' - lr g, where plain momentum gives w + v'."""
    w, v = np.array([1.0, -2.0]), np.zeros(2)
    block = Held(w_weight=w.astype(np.float16 if half else np.float32))
    opt = (optimisers.MixedSGD if half else optimisers.SGD)(block, 0.9, nesterov=True)
    scale = opt.loss_scale if half else 1
    for g in ([0.5, -0.25], [1.0, 0.5], [0.0, 0.25]):
        block.give(w_weight=4 * scale * np.array(g))
        opt.step(0.1, 4)
        v = 0.9 * v - 0.1 * np.array(g)
        w = w + 0.9 * v - 0.1 * np.array(g)
    got = opt.masters["w_weight"].asnumpy() if half else block.values()["w_weight"]
    np.testing.assert_allclose(got, w, rtol=1e-6)


def test_a_step_that_overflows_is_left_out(monkeypatch):
    block = Held(w_weight=np.ones(2, np.float16), gamma=np.ones(1, np.float32))
    opt = optimisers.MixedSGD(block)
    monkeypatch.setattr(opt, "GROWTH", 2)
    before, gradients = block.values(), {"w_weight": [1.0, 1.0], "gamma": [1.0]}
    for bad in ({"w_weight": [1.0, np.inf]}, {"gamma": [np.nan]}):
        block.give(**{**gradients, **bad})
        opt.step(0.1, 1)
        assert all(np.array_equal(v, before[k]) for k, v in block.values().items())
    assert opt.loss_scale == 32
    block.give(**gradients)
    opt.step(0.1, 1)
    assert opt.loss_scale == 32 and (block.values()["w_weight"] < 1).all()
    opt.step(0.1, 1)
    assert opt.loss_scale == 64, "doubled after GROWTH good steps"
    block.give(gamma=[np.inf])
    with pytest.raises(optimisers.DivergedError, match="overflow float16 at every loss scale"):
        for _ in range(100):
            opt.step(0.1, 1)


def test_float16_leaves_batch_norms_images_and_outputs_in_float32():
    net = random_network("resnet18_v1b")
    params = to_block(net, dtype="float16").collect_params()
    for name in net.arrays:
        half = name.endswith(("weight", "bias"))
        assert np.dtype(params[name].dtype) == (np.float16 if half else np.float32), name


def without_layers():
    """A network that MXNet can run in float16 on a CPU: a scale per channel, batch norm, pooling."""
    nodes = [Node("null", name, {}) for name in ("data", "a_gate", "gamma", "beta", "mean", "var")]
    nodes += [
        Node("broadcast_mul", "scaled", {}, ((0, 0), (1, 0))),
        Node("BatchNorm", "norm", {"fix_gamma": "False", "axis": "1"}, ((6, 0), (2, 0), (3, 0), (4, 0), (5, 0))),
        Node("Pooling", "pool", {"global_pool": "True", "pool_type": "avg", "kernel": "(1, 1)"}, ((7, 0),)),
        Node("Flatten", "flat", {}, ((8, 0),)),
    ]
    values = {
        "a_gate": np.full((1, 3, 1, 1), 1.0001),
        "gamma": [1, 2, 3],
        "beta": [0, 0, 0],
        "mean": [0, 0, 0],
        "var": [1, 1, 1],
    }
    image = (1, 3, 8, 8)
    shapes = tuple((s,) for s in (image, (1, 3, 1, 1), *[(3,)] * 4, image, image, (1, 3, 1, 1), (1, 3)))
    return Network("t", tuple(nodes), ((9, 0),), shapes, {k: np.array(v, np.float32) for k, v in values.items()})


def test_training_in_float16_resumes_to_the_same_bits(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "CHECKPOINT_S", 0.0)
    monkeypatch.setattr(loop, "FLUSH", 2)
    net, checkpoint = without_layers(), tmp_path / "c"

    def train(**how):
        split = Noise(24)
        split.y = split.y % 3
        schedule, kind = schedules.constant(0.02, 6), steps.MixedStep
        return fit(net, 6, split, schedule, lambda b: optimisers.MixedSGD(b, 0.9, 1e-4), kind=kind, **how)[0]

    whole, step, count = train(), optimisers.MixedSGD.step, [0]

    def dying(self, lr, batch):
        count[0] += 1
        if count[0] == 5:
            raise KeyboardInterrupt
        step(self, lr, batch)

    monkeypatch.setattr(optimisers.MixedSGD, "step", dying)
    with pytest.raises(KeyboardInterrupt):
        train(checkpoint=checkpoint)
    monkeypatch.setattr(optimisers.MixedSGD, "step", step)
    resumed = train(checkpoint=checkpoint)
    for name, value in whole.arrays.items():
        assert value.dtype == np.float32 and not np.array_equal(value, net.arrays[name])
        np.testing.assert_array_equal(value, resumed.arrays[name], err_msg=name)
    assert (whole.arrays["a_gate"] != whole.arrays["a_gate"].astype(np.float16)).any(), "the masters' bits"


def test_float16_is_refused_where_there_is_no_gpu():
    optimisers.check_dtype("float32")
    if not mx.context.num_gpus():
        with pytest.raises(UserError, match="dtype: float16 needs a GPU, and there is none here"):
            optimisers.check_dtype("float16")


@pytest.mark.parametrize("bad", [None, 0, 199, 200, 450])
def test_all_finite_of_more_arrays_than_the_operator_has_room_for(bad):
    # ResNet-50 has 320 with its running statistics; more than 200 at once overwrote memory and killed the process.
    arrays = [mx.nd.ones((3,)) for _ in range(451)]
    if bad is not None:
        arrays[bad][1] = np.nan
    assert optimisers.all_finite(arrays) == (bad is None)


@pytest.mark.slow
def test_a_grouped_convolution_may_have_no_fused_backward():
    """oneDNN has none where the groups are narrower than its blocks, though all widths are multiples of 16."""
    net = from_gluoncv("cifar_resnext29_32x4d", (3, 8, 8), seed=0)
    assert np.isfinite(steps.random_step(net, 4)().asnumpy()).all()

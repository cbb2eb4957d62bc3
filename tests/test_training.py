"""The training loop, evaluation and stages."""
import json

import mxnet as mx
import numpy as np
import pytest
from mxnet import autograd
from networks import images, random_network

from gcp import training
from gcp.gluon import from_gluoncv, predict, to_block
from gcp.network import shrink
from tests.test_prune import Noise


@pytest.fixture(scope="module")
def net():
    return from_gluoncv("cifar_resnet20_v1", (3, 8, 8), 4, seed=3)


def fit(net, n_steps=7, checkpoint=None, lr=0.05, dropout=False):
    return training.fit(net, Noise(20), name="t", n_steps=n_steps, batch=8, seed=1, lr=training.cosine(lr, n_steps, 2),
                        optimiser=lambda block: training.SGD(block, 0.9, 1e-4), checkpoint=checkpoint)


def test_cosine_by_hand():
    lr = training.cosine(0.4, 12, 2)
    assert [lr(0), lr(1), lr(2)] == pytest.approx([0.2, 0.4, 0.4])
    assert lr(7) == pytest.approx(0.2) and lr(11) < 0.02


def test_evaluation_counts_the_short_last_batch_once(net):
    split = Noise(13)
    got = training.evaluate(net, split, batch=5)
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
    assert training.evaluate(flat, Noise(20))["top1"] == 0.25


def test_training_is_sgd_with_momentum_and_decay_on_weights(net):
    """Two steps of the loop against two steps written out."""
    split = Noise(16)
    trained, _ = training.fit(net, split, name="t", n_steps=2, batch=8, seed=0, lr=training.constant(0.1),
                              optimiser=lambda block: training.SGD(block, 0.9, 0.01))
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
    assert training.smoothed_loss(out, y, 0.1).asscalar() == pytest.approx(by_hand, rel=1e-5)


def test_killed_training_resumes_to_the_same_bits(net, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "CHECKPOINT_S", 0.0)
    monkeypatch.setattr(training, "FLUSH", 2)
    whole, loss = fit(net)
    checkpoint = tmp_path / "c"
    step = training.SGD.step
    for fatal in (5, 3):  # killed twice, the second time in another epoch than the first
        count = [0]

        def dying(self, lr, batch, fatal=fatal, count=count):
            count[0] += 1
            if count[0] == fatal:
                raise KeyboardInterrupt
            step(self, lr, batch)

        monkeypatch.setattr(training.SGD, "step", dying)
        with pytest.raises(KeyboardInterrupt):
            fit(net, checkpoint=checkpoint)
        assert checkpoint.exists()
    monkeypatch.setattr(training.SGD, "step", step)
    resumed, resumed_loss = fit(net, checkpoint=checkpoint)
    assert loss == resumed_loss
    assert all(np.array_equal(whole.arrays[k], resumed.arrays[k]) for k in whole.arrays)


@pytest.mark.parametrize("tied, single", [(8, 16), (16, 16)])
def test_a_block_trains_whatever_kernels_there_are(tied, single):
    """Widths of 8 and 16 in turns have no fused backward on AVX-512: the block does without, and nothing has moved."""
    dense = random_network("resnet18_v1b")
    net = shrink(dense, {g.name: np.arange(tied if len(g.norms) > 1 else single) for g in dense.groups})
    x, blocks = mx.nd.array(images(net, 4)), [training.trained_block(net, mx.cpu()), to_block(net)]
    for name, value in net.arrays.items():
        np.testing.assert_array_equal(blocks[0].collect_params()[name].data().asnumpy(), value)
    for block in blocks:
        with autograd.record():
            output = block(x)
        output.backward()
        mx.nd.waitall()
    one, two = ({k: p.grad().asnumpy() for k, p in b.collect_params().items() if p.grad_req != "null"} for b in blocks)
    for name in one:
        np.testing.assert_array_equal(one[name], two[name], err_msg=name)


def test_dropout_is_reproducible():
    vgg = from_gluoncv("vgg11", (3, 32, 32), 4, seed=0)

    class Large(Noise):
        def batches(self, size, **how):
            for x, y, n in super().batches(size, **how):
                yield x.repeat(4, 2).repeat(4, 3), y, n

    def once():
        return training.fit(vgg, Large(8), name="t", n_steps=2, batch=4, seed=1, lr=training.constant(0.01),
                            optimiser=lambda block: training.SGD(block))[0]
    a, b = once(), once()
    assert all(np.array_equal(a.arrays[k], b.arrays[k]) for k in a.arrays)


def test_an_infinite_loss_names_its_step(net, monkeypatch):
    monkeypatch.setattr(training, "FLUSH", 4)
    loss, calls = training.smoothed_loss, []

    def third_is_infinite(*args):
        calls.append(1)
        return loss(*args) * (np.inf if len(calls) == 3 else 1.0)

    monkeypatch.setattr(training, "smoothed_loss", third_is_infinite)
    with pytest.raises(training.DivergedError, match=r"^t: the loss is inf at step 3 of 6;"):
        training.fit(net, Noise(48), name="t", n_steps=6, batch=8, seed=0, lr=training.constant(0.01),
                     optimiser=lambda block: training.SGD(block))


def test_swallowed_nans_are_found_and_the_checkpoint_is_kept(net, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "CHECKPOINT_S", 0.0)
    monkeypatch.setattr(training, "FLUSH", 2)
    poisoned = Noise(48)
    poisoned.x[41] = np.nan  # in the sixth batch of 8
    checkpoint = tmp_path / "c"
    with pytest.raises(training.DivergedError, match=r"t: weights are no longer finite after step 6 of 6"):
        training.fit(net, poisoned, name="t", n_steps=6, batch=8, seed=0, lr=training.constant(0.01),
                     optimiser=lambda block: training.SGD(block), checkpoint=checkpoint)
    assert checkpoint.exists()


def test_a_stage_is_done_once(net, tmp_path):
    calls = []

    def compute(checkpoint):
        checkpoint.write_bytes(b"")
        calls.append(1)
        return net, {"a": 1}

    first, second = training.stage(tmp_path / "s", compute), training.stage(tmp_path / "s", compute)
    assert calls == [1] and first[1] == second[1] == {"a": 1}
    assert all(np.array_equal(net.arrays[k], second[0].arrays[k]) for k in net.arrays)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["s-0000.params", "s-symbol.json", "s.json"]
    assert json.loads((tmp_path / "s.json").read_text()) == {"a": 1}


@pytest.mark.parametrize("bad", [None, 0, 199, 200, 450])
def test_all_finite_of_more_arrays_than_the_operator_has_room_for(bad):
    # ResNet-50 has 320 with its running statistics; more than 200 at once overwrote memory and killed the process.
    arrays = [mx.nd.ones((3,)) for _ in range(451)]
    if bad is not None:
        arrays[bad][1] = np.nan
    assert training.all_finite(arrays) == (bad is None)

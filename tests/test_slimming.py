"""Network slimming: its update by hand, a channel that it must find, refusal, images, resuming."""

from types import SimpleNamespace

import mxnet as mx
import numpy as np
import pytest
from networks import built, random_network

from gcp.backend.blocks import to_block
from gcp.backend.files import load
from gcp.cost.analytic import macs
from gcp.cost.base import Budget
from gcp.errors import UserError
from gcp.methods.base import METHODS, Problem
from gcp.train import loop
from gcp.train.losses import Objective
from gcp.train.optimisers import SGD
from gcp.train.proximal import SparseSGD
from gcp.train.steps import OrdinaryStep
from tests.test_prune import Noise


@pytest.fixture(scope="module")
def net():
    return random_network("cifar_resnet20_v1", (3, 8, 8), 4)


def test_a_step_is_one_of_sgd_and_a_soft_threshold_of_every_scale(net):
    split = Noise(8)
    x, y = mx.nd.array(split.x), mx.nd.array(split.y)
    after = {}
    for name, kind in (("plain", SGD), ("sparse", lambda block, *how: SparseSGD(net, block, 0.5, *how))):
        step = OrdinaryStep(net, Objective(), lambda block, kind=kind: kind(block, 0.9, 5e-4))
        step(x, y, 0, 0.1)
        after[name] = step.network().arrays
    for key, plain in after["plain"].items():
        by_hand = np.sign(plain) * np.maximum(np.abs(plain) - 0.1 * 0.5, 0) if key.endswith("gamma") else plain
        np.testing.assert_allclose(after["sparse"][key], by_hand, atol=1e-6)


def problem_of(net, target=0.5):
    cost, data = macs(net), SimpleNamespace(train=Noise(24), validation=Noise(8))
    return Problem(net, Budget(cost, cost(net.widths), target), data, 0, 8, statistics_images=16)


def test_a_channel_without_scale_goes_and_images_are_counted(net, tmp_path):
    """All gradients of a channel that is read with weight zero are zero: the penalty alone moves its scale."""
    group = next(g for g in net.groups if len(g.producers) == 1)
    weight = net.weight(group.consumers[0])
    deaf = net.arrays[weight].copy()
    deaf[:, 3] = 0
    net, logged = net.with_arrays({weight: deaf}), []
    options = METHODS.options["slimming"](epochs=1, lam=1.0)
    run = SimpleNamespace(path=tmp_path, log=lambda event, **facts: logged.append(event))
    outcome = METHODS["slimming"](problem_of(net), options, run)
    assert outcome.images == {"sparsity": 24, "statistics": 16}
    assert sum(outcome.images.values()) == options.n_images(24, 8, 16)
    cost = macs(net)
    assert cost(outcome.network.widths) <= 0.5 * cost(net.widths) and "epoch" in logged
    predicted = to_block(outcome.network)(mx.nd.array(Noise(4).x)).asnumpy()
    assert predicted.shape == (4, 4) and np.isfinite(predicted).all()

    logged.clear()
    again = METHODS["slimming"](problem_of(net), options, run)  # the training is read back
    assert logged == [] and all(np.array_equal(again.network.arrays[k], v) for k, v in outcome.network.arrays.items())


@pytest.mark.slow
def test_killed_in_its_second_epoch_it_ends_with_the_same_numbers(net, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "CHECKPOINT_S", -1)

    class Killed(Exception):
        pass

    def killed(event, epoch, **facts):
        if epoch == 2:
            raise Killed

    options, networks = METHODS.options["slimming"](epochs=2), []
    for name in ("killed", "whole"):
        (tmp_path / name).mkdir()
        if name == "killed":
            with pytest.raises(Killed):
                METHODS["slimming"](problem_of(net), options, SimpleNamespace(path=tmp_path / name, log=killed))
        epochs = []
        run = SimpleNamespace(path=tmp_path / name, log=lambda event, **facts: epochs.append(event))
        networks.append(METHODS["slimming"](problem_of(net), options, run).network)
        assert len(epochs) == (1 if name == "killed" else 2)
    killed, whole = networks
    assert killed.widths == whole.widths
    assert all(np.array_equal(killed.arrays[k], v) for k, v in whole.arrays.items())


@pytest.mark.slow
def test_with_more_penalty_more_scales_are_zero(net, tmp_path):
    n_zero = []
    for lam in (0.0, 3.0):
        folder = tmp_path / str(lam)
        folder.mkdir()
        run = SimpleNamespace(path=folder, log=lambda event, **facts: None)
        METHODS["slimming"](problem_of(net), METHODS.options["slimming"](epochs=3, lam=lam), run)
        arrays = load(folder / "slimming-sparse").arrays
        n_zero.append(sum(int((v == 0).sum()) for k, v in arrays.items() if k.endswith("gamma")))
    assert n_zero[0] == 0 < n_zero[1]


@pytest.mark.parametrize(
    "method, how", [("slimming", {}), ("one_shot", {"criterion": "bn_scale"}), ("gcp", {"score": "bn_scale"})]
)
def test_a_network_without_scales_is_refused_before_anything_is_trained(method, how):
    x = mx.sym.Convolution(mx.sym.var("data"), num_filter=6, kernel=(1, 1), name="bare")
    x = mx.sym.Pooling(mx.sym.relu(x), global_pool=True, pool_type="avg")
    bare = built(mx.sym.FullyConnected(x, num_hidden=4, name="out"), (3, 8, 8))
    with pytest.raises(UserError) as error:
        METHODS.options[method](**how).check(bare, problem_of(bare).budget)
    assert error.value.key == "criterion.network"

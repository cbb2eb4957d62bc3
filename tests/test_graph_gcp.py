"""GCP from a configuration to a record, on a network of every kind that the walk takes in."""

from __future__ import annotations

import itertools

import mxnet as mx
import pytest
from networks import built

from gcp.backend import files, zoo
from gcp.cost.analytic import macs
from gcp.experiment import config
from gcp.experiment import run as experiment_run
from gcp.experiment.record import load_records
from gcp.methods import criteria

CONFIG = """
scale: smoke
threads: 1
model: {name: NAME}
data: {name: digits, input: [3, SIZE, SIZE], batch: 20, n_train: 100}
train: {epochs: 1, lr: 0.02}
prune: {method: gcp, objective: macs, target: 0.6, round_to: 1, gcp: {iterations: 2}}
finetune: {epochs: 1, lr: 0.02}
"""


def conv(x, name, n=8, kernel=1, **how):
    return mx.sym.Convolution(x, num_filter=n, kernel=(kernel, kernel), name=name, **how)


def normed(x, name, **how):
    return mx.sym.BatchNorm(conv(x, name, no_bias=True, **how), fix_gamma=False, name=f"{name}_norm")


def squeezed(x):
    """Squeeze-excite."""
    gate = conv(mx.sym.relu(conv(mx.sym.Pooling(x, global_pool=True, pool_type="avg"), "squeeze", 4)), "excite")
    return mx.sym.broadcast_mul(x, mx.sym.sigmoid(gate))


def shuffled(x):
    pairs = mx.sym.swapaxes(mx.sym.reshape(x, shape=(0, -4, 2, -1, -2)), dim1=1, dim2=2)
    return mx.sym.reshape(pairs, shape=(0, -3, -2))


MIDDLES = {
    "concat": lambda x: mx.sym.relu(normed(mx.sym.Concat(x, mx.sym.relu(normed(x, "branch"))), "joined")),
    "squeeze-excite": squeezed,
    "grouped": lambda x: mx.sym.relu(normed(x, "grouped", kernel=3, num_group=2)),
    "shuffle": lambda x: mx.sym.relu(normed(shuffled(normed(x, "grouped", num_group=2)), "mixed", num_group=2)),
    "no norm": lambda x: x,
    "dropout": lambda x: mx.sym.Dropout(mx.sym.relu(normed(x, "inner")), p=0.3),
    "relu6": lambda x: mx.sym.clip(normed(x, "inner"), 0, 6),
}


def prune(name, size, folder):
    (folder / "c.yaml").write_text(CONFIG.replace("NAME", str(name)).replace("SIZE", str(size)))
    experiment_run.run(config.load(folder / "c.yaml", [f"output={folder / 'results'}"]))
    ((path, record, _),) = load_records(folder / "results")
    assert len(record.history) == 2 and record.stages.final.n_eval == 359
    dense, final = record.widths.dense, record.widths.final
    assert set(dense) == set(final) and all(1 <= final[g] <= dense[g] for g in dense) and final != dense
    assert record.macs_kept <= 0.6
    small = zoo.open_network(str(path / "final"))
    assert small.widths == final and macs(small)(final) == record.stages.final.macs
    assert not any(array.endswith("_gate") for array in small.arrays)


def small_network(middle, folder):
    """A conv, the operators in question, a conv and a dense layer; saved, for ten classes."""
    make = conv if middle == "no norm" else normed
    x = mx.sym.relu(make(mx.sym.var("data"), "first", kernel=3, pad=(1, 1)))
    x = mx.sym.Pooling(mx.sym.relu(make(MIDDLES[middle](x), "last")), global_pool=True, pool_type="avg")
    net = built(mx.sym.FullyConnected(x, num_hidden=10, name="dense"), (3, 8, 8))
    files.save(net, folder / "start")
    return folder / "start"


@pytest.mark.slow
@pytest.mark.parametrize("middle", MIDDLES)
def test_gcp_on_small_networks(middle, tmp_path):
    prune(small_network(middle, tmp_path), 8, tmp_path)


@pytest.mark.slow
def test_a_resumed_run_with_dropout_cuts_the_same_channels(tmp_path, monkeypatch):
    """It is interrupted where the second iteration ranks channels by a loss of which dropout is a part."""
    (tmp_path / "c.yaml").write_text(
        CONFIG.replace("NAME", str(small_network("dropout", tmp_path))).replace("SIZE", "8")
    )
    whole, resumed = (
        config.load(tmp_path / "c.yaml", [f"output={tmp_path / name}", "prune.gcp.score=taylor"]) for name in "ab"
    )
    expected, scores = experiment_run.run(whole), criteria.taylor_scores
    n_scored = itertools.count(1)

    def interrupted(*arguments):
        if next(n_scored) == 2:
            raise KeyboardInterrupt
        return scores(*arguments)

    monkeypatch.setattr(criteria, "taylor_scores", interrupted)
    with pytest.raises(KeyboardInterrupt):
        experiment_run.run(resumed)
    monkeypatch.undo()
    mx.random.seed(99)  # another process begins elsewhere in MXNet's numbers
    found = experiment_run.run(resumed)
    assert (found.widths, found.history) == (expected.widths, expected.history)
    assert found.stages.final.loss == expected.stages.final.loss


@pytest.mark.slow
@pytest.mark.parametrize("name, size", [("mobilenetv3_small", 32), ("cifar_resnext29_32x4d", 8), ("shufflenet_v2", 64)])
def test_gcp_on_networks_of_the_zoo(name, size, tmp_path):
    prune(name, size, tmp_path)

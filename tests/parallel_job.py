"""What test_parallel.py has two workers compute; it computes the same by itself and compares.

As a script: `parallel_job.py FOLDER` writes each worker's results; `parallel_job.py --run CONFIG ...` is scripts/run.py
with a checkpoint every second step.
"""

from __future__ import annotations

import os
import runpy
import sys
from itertools import islice
from pathlib import Path

import mxnet as mx
import numpy as np
from mxnet.gluon import nn

from gcp.backend.files import load
from gcp.backend.zoo import from_gluoncv
from gcp.cost.analytic import macs
from gcp.data import datasets as data
from gcp.graph.network import Network
from gcp.graph.surgery import rescale, with_gates
from gcp.methods import criteria
from gcp.methods import gcp as gcp_method
from gcp.train import distributed, loop, schedules
from gcp.train.losses import Objective
from gcp.train.optimisers import SGD
from gcp.train.slimmable import Sampling, SlimmableStep
from gcp.train.steps import OrdinaryStep, ProximalStep, scoring_step
from gcp.train.tasks import CLASSIFICATION

BATCH, N_STEPS = 16, 7
DIGITS = data.load(data.options(name="digits", input=(3, 8, 8), batch=BATCH, n_train=100))  # 90 images: 6 batches
NET = from_gluoncv("cifar_resnet20_v1", (3, 8, 8), 10, seed=3)


def without_norms(folder: Path) -> Network:
    """Two convs and a dense layer."""
    mx.random.seed(0)
    block = nn.HybridSequential(prefix="plain_")
    with block.name_scope():
        block.add(nn.Conv2D(8, 3, activation="relu"), nn.Conv2D(8, 3, activation="relu"), nn.Dense(10))
    block.initialize(mx.init.Xavier())
    block.hybridize()
    block(mx.nd.zeros((1, 3, 8, 8)))
    block.export(str(folder / f"plain-{distributed.process_group().rank}"))
    return load(folder / f"plain-{distributed.process_group().rank}", (3, 8, 8))


def ordinary(net: Network, **how) -> OrdinaryStep:
    """Momentum and weight decay."""
    return OrdinaryStep(net, Objective(), lambda block: SGD(block, 0.9, 1e-3), 1, **how)


def fit(step: OrdinaryStep) -> Network:
    """A few steps: more than an epoch."""
    loop.fit(step, loop.Batches(DIGITS.train, BATCH, 1, "crop_flip"), schedules.constant(0.01, N_STEPS), name="t")
    return step.network()


def slimmable(net: Network) -> SlimmableStep:
    """Of a network without norms, whose widest learns from all images: which are whose makes no difference then."""
    levels = {name: [n // 4, n // 2, n] for name, n in net.widths.items()}
    step = SlimmableStep(net, CLASSIFICATION, lambda block: SGD(block, 0.9, 1e-3), Sampling(levels, 2, 1.0), 1)
    fit(step)
    return step


def results(folder: Path) -> dict:
    """Arrays that do not depend on the number of ranks, but for rounding."""
    slim = slimmable(without_norms(folder))
    dense = rescale(with_gates(NET))
    penalties = {g: 0.5 * c for g, c in gcp_method.channel_penalties(dense, macs(dense)).items()}
    regularised = fit(ProximalStep(dense, Objective(), penalties, 0.9, 1))
    frozen = scoring_step(NET, "classification")
    group = distributed.process_group()
    batches = enumerate(loop.Batches(DIGITS.train, group.world_size * 8, 0).since(0))
    tested = CLASSIFICATION.evaluate(NET, DIGITS.test, 50)
    return {
        **{f"regularised:{k}": v for k, v in regularised.arrays.items()},
        **{f"frozen:{k}": v for k, v in fit(ordinary(NET, frozen_statistics=True)).arrays.items()},
        **{f"plain:{k}": v for k, v in fit(ordinary(without_norms(folder))).arrays.items()},
        **{f"score:{k}": v for k, v in criteria.taylor_scores(frozen, islice(batches, 12 // group.world_size)).items()},
        **{f"slimmable:{k}": v for k, v in slim.network().arrays.items()},
        "drawn": slim.drawn().differences,
        **{f"tested:{k}": np.array([v], np.float64) for k, v in tested.items()},
    }


def sums(n_rounds: int) -> int:
    """Sums of whole numbers, two sets of arrays in turns, in messages of 20,000: how many came out wrong."""
    group, wrong = distributed.process_group(), 0
    shapes = {"a": [(3,), (50000,), (7, 11), (1,), (19998,)], "b": [(600, 40), (5,)]}
    values = {
        name: [np.random.default_rng(r).integers(-8, 9, s).astype(np.float32) for r in range(group.world_size)]
        for name, list_of in shapes.items()
        for s in [sum(int(np.prod(shape)) for shape in list_of)]
    }
    arrays = {
        name: [mx.nd.zeros(s, dtype="float16" if s == (19998,) else "float32") for s in list_of]
        for name, list_of in shapes.items()
    }
    runs = {name: group.all_reducer(list_of) for name, list_of in arrays.items()}
    for number in range(1, n_rounds + 1):
        for name, list_of in arrays.items():
            flat, start = values[name][group.rank] * (number % 7), 0
            for array in list_of:
                array[:] = flat[start : start + array.size].reshape(array.shape)
                start += array.size
            runs[name]()
        for name, list_of in arrays.items():
            got = np.concatenate([a.asnumpy().reshape(-1) for a in list_of])
            wrong += not np.array_equal(got, sum(values[name]) * (number % 7))
    group.check("sums")
    return wrong


def main(argv: list) -> None:
    """See the module."""
    if argv[0] == "--run":
        loop.CHECKPOINT_S, loop.FLUSH = 0.0, 2
        sys.argv = ["run.py", *argv[1:]]
        runpy.run_path(str(Path(__file__).parents[1] / "scripts" / "run.py"), run_name="__main__")
    folder, rank = Path(argv[0]), os.environ["GCP_RANK"]
    distributed.CHUNK = 20000
    wrong = sums(100)
    arrays = results(folder)
    normed = fit(ordinary(NET)).arrays
    np.savez(folder / f"results-{rank}.npz", wrong=wrong, **arrays, **{f"normed:{k}": v for k, v in normed.items()})
    distributed.process_group().check("the same", lambda: arrays)
    try:
        distributed.process_group().check("t, step 7 of 7", lambda: {"a": np.array([float(rank == "1")])})
    except distributed.UnequalError as error:
        (folder / f"unequal-{rank}").write_text(str(error))


if __name__ == "__main__":
    main(sys.argv[1:])

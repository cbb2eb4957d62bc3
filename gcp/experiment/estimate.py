"""Forecast what experiments take, without their data: targets and whether they can be reached, costs, images, time.

Takes configurations and returns a row for each. Nothing is trained except for a few steps on random images, to measure
how fast this machine is.
"""

from __future__ import annotations

import gc
import time
from functools import lru_cache
from pathlib import Path
from typing import Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from gcp.backend.engine import mx
from gcp.backend.files import is_saved
from gcp.backend.zoo import open_network
from gcp.cost import latency
from gcp.cost.analytic import macs, params
from gcp.cost.base import Budget
from gcp.errors import UserError
from gcp.experiment import plan
from gcp.experiment.config import Config, load
from gcp.graph.network import Network, Widths
from gcp.graph.surgery import resized
from gcp.methods.uniform import uniform_widths
from gcp.train.distributed import device
from gcp.train.steps import random_step

# Maximum pixels of a timed batch: 8 images of 224 px on a CPU, 64 on a GPU. A batch of a few small images would mostly
# time a step's fixed overhead: MobileNetV2 processes 32 px images less than half as fast in batches of 8 as of 128.
BENCHMARK_PIXELS = {"cpu": 8 * 224**2, "gpu": 64 * 224**2}
N_STEPS = 3

Speed = Callable[[Network, int], float]  # network, configured batch -> images per second of a training step


class Row(NamedTuple):
    """One experiment. Costs are those of the uniformly pruned network at the target or, if nothing is pruned, of the
    network itself."""

    name: str
    seed: int
    table: Optional[str]
    level: int
    chosen: bool
    objective: str
    target: Optional[float]  # None: nothing is pruned
    lowest: Optional[float]  # the lowest cost that can be reached, as a fraction
    params: int
    macs: int
    images_dense: int  # 0 if the network is pretrained, or trained by an earlier experiment
    images_prune: int
    images_finetune: int
    seconds: Optional[float]
    stand_in: bool  # the network to start from does not exist yet: uniform widths stand in for its own

    @property
    def is_reachable(self) -> bool:
        """Whether pruning can meet the target."""
        return self.target is None or self.lowest <= self.target

    @property
    def images(self) -> int:
        """The total number of images of all phases."""
        return self.images_dense + self.images_prune + self.images_finetune


def sizes(cfg: Config) -> Tuple[int, int]:
    """(classes, training images without validation) of the configured data set: counted if present, else as known.

    UserError: the data set is missing and its size is not known.
    """
    n_classes, n = cfg.data.known_size()
    n = min(n, cfg.data.n_train or n)
    return n_classes, n - max(1, round(n * cfg.data.validation))


def start_network(cfg: Config, n_classes: int, overlays: Sequence[str] = ()) -> Tuple[Network, Widths, bool]:
    """The network that pruning starts from, whose weights do not matter; its widths; whether these are a stand-in.

    A saved network that does not exist yet has the shape of the configuration that makes it (`paper.starts_from`, with
    the same `overlays`), pruned uniformly. UserError: there is no such network, or no configuration that makes it.
    """
    model = cfg.model
    if not model.is_saved or (not model.is_pattern and is_saved(model.name)):
        args = model.name, cfg.data.input, n_classes
        net = open_network(*args, new_head=model.new_head) if model.is_saved else _opened(*args)
        return net, net.widths, False
    if cfg.paper.starts_from is None:
        fix = "finish the run that creates it, or name its configuration in paper.starts_from"
        raise UserError(f"{cfg.name}: the saved network '{model.name}' does not exist; {fix}", key="network.absent")
    source = load(cfg.paper.starts_from, [f"seed={cfg.seed}"], overlays)
    whole, widths, _ = start_network(source, sizes(source)[0], overlays)
    budget = budget_of(source, whole)
    widths = widths if budget.target >= 1 else uniform_widths(whole.widths, budget)
    return _opened(whole.name, cfg.data.input, n_classes), widths, True


_opened = lru_cache(maxsize=8)(open_network)  # GluonCV networks without weights, shared by the rows of a table


def budget_of(cfg: Config, net: Network) -> Budget:
    """The configured budget. A latency model is not checked against this machine: estimates are the same on any."""
    return plan.budget_of(cfg, net, latency.load(Path(cfg.prune.latency_model)) if cfg.prune.latency_model else None)


def forecast(cfgs: List[Config], speed: Optional[Speed] = None, overlays: Sequence[str] = ()) -> List[Row]:
    """A row for each configuration, with the seconds that it takes if `speed` is given.

    `overlays` are those that the configurations were loaded with. UserError: a network or data set is unknown.
    """
    rows, trained = [], set()
    for cfg in cfgs:
        n_classes, n_train = sizes(cfg)
        net, widths, stand_in = start_network(cfg, n_classes, overlays)
        budget, is_cut, batch = budget_of(cfg, net), cfg.prune.options.PRUNES, cfg.data.batch
        # If the target cannot be reached, these are the smallest possible widths.
        small = uniform_widths(net.widths, budget) if is_cut and budget.target < 1 else widths
        per_epoch, pruning = -(-n_train // batch) * batch, plan.images_to_prune(cfg, n_train)
        dense = (cfg.output, cfg.dense_fingerprint(contents=False))
        finetuning, others = (
            plan.images_to_finetune(cfg, n_train, pruning),
            max(0, cfg.search.per_run * cfg.search.trials - 1),
        )
        images = (
            0 if dense in trained else cfg.train.epochs * per_epoch,
            pruning + others * (pruning + finetuning),
            finetuning,
        )
        trained.add(dense)
        seconds = None
        if speed is not None:
            whole, after = (speed(resized(net, w), batch) if sum(images) else 1.0 for w in (widths, small))
            # While it is pruned, an image takes about the mean of the times before and after.
            seconds = images[0] / whole + images[1] * (1 / whole + 1 / after) / 2 + images[2] / after
        place = cfg.name, cfg.seed, cfg.paper.table, cfg.paper.level, cfg.paper.chosen, cfg.prune.counted
        targets = (budget.target, budget.lowest(widths)) if is_cut else (None, None)
        counts = int(params(net)(small)), int(macs(net)(small))
        rows.append(Row(*place, *targets, *counts, *images, seconds, stand_in))
    return rows


class Stopwatch:
    """Measures images per second of training steps on this machine, once per network. `measured` describes how."""

    def __init__(self, show: Callable[[str], None] = lambda text: None) -> None:
        self._seen: Dict[tuple, float] = {}
        self._show = show
        self.device = device().device_type
        self.batches = set()

    def __call__(self, net: Network, batch: int) -> float:
        """Images per second, by the median time of `N_STEPS` steps after a first one, on all weights and random float32
        images."""
        _, height, width = net.input_shape
        batch = max(1, min(batch, BENCHMARK_PIXELS[self.device] // (height * width)))
        key = (net.name, net.input_shape, net.n_classes, tuple(net.widths.items()), batch)
        if key not in self._seen:
            size = f"{'x'.join(map(str, net.input_shape))}, batch {batch}"
            self._show(f"timing {net.name}, {size}, {int(macs(net)(net.widths)) / 1e6:,.0f} MMACs ...")
            step, ended = random_step(net, batch), []
            for _ in range(N_STEPS + 2):
                ended.append(time.perf_counter())
                step()
                mx.nd.waitall()
            del step
            gc.collect()  # blocks contain reference cycles, which keep their memory alive
            self._seen[key] = batch / float(np.median(np.diff(ended)[1:]))
            self.batches.add(batch)
        return self._seen[key]

    @property
    def measured(self) -> str:
        """How the speeds were measured, in words."""
        batches = " or ".join(map(str, sorted(self.batches)))
        return (
            f"one {self.device.upper()}, float32, batch {batches}, random images: the median of {N_STEPS} steps of "
            f"each of {len(self._seen)} networks; without loading images, and without evaluation"
        )

"""How fast: GCP's steps and schedule against GluonCV's ordinary training, our loader against MXNet's, as ratios.

In: the names of the measurements (`NAMES`) and a number of repeats. Out: rows, one per ratio, as plain JSON
values and as a Markdown table. Things compared are timed in turns within one process, so that whatever else
the machine does meets them alike. Random data: the numbers in a batch do not change how long a step takes.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Callable, Dict, List, Mapping, Optional, Sequence

import cv2
import numpy as np
from gluoncv.model_zoo import get_model

from gcp import runtime
from gcp.backend.blocks import predict
from gcp.backend.engine import autograd, gluon, mx
from gcp.backend.zoo import from_gluoncv
from gcp.cost.analytic import describe, macs
from gcp.cost.base import Budget
from gcp.data import decode, prepare
from gcp.data.base import Dataset, Split
from gcp.data.sources import Records
from gcp.errors import UserError
from gcp.experiment.config import Config
from gcp.graph.network import Network
from gcp.graph.surgery import rescale, shrink, silence, with_gates
from gcp.methods import gcp as gcp_method
from gcp.methods.base import Problem
from gcp.runtime import physical_cores
from gcp.train import schedules
from gcp.train.distributed import device
from gcp.train.loop import Batches, fit
from gcp.train.losses import Objective, Teacher
from gcp.train.optimisers import SGD
from gcp.train.steps import OrdinaryStep, ProximalStep, Step
from gcp.train.tasks import CLASSIFICATION

Run = Callable[[], None]  # one step, or whatever is timed
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
# oneDNN's names; GCP's frozen convs need no weight gradients.
CONV_KERNELS = ("forward_training", "backward_data", "backward_weights")
MARK = "-- the step that counts --"
# Too small to move a weight: the arithmetic of a step is timed, and it must not end in NaN on random data.
LR, MOMENTUM, WD = 1e-8, 0.9, 1e-4


@dataclass(frozen=True)
class Case:
    """A network and what it is fed: `side` in pixels; targets are ratios of images per second, or None."""

    network: str
    side: int
    batch: int
    classes: int
    regularise: Optional[float] = None
    ordinary: Optional[float] = None

    @property
    def shape(self) -> tuple:
        """(channels, height, width)."""
        return 3, self.side, self.side

    def built(self) -> Network:
        """The network, with random weights that are the same at every call."""
        return from_gluoncv(self.network, self.shape, self.classes, seed=0)

    def __str__(self) -> str:
        return f"{self.network}, {self.side} px, batch {self.batch}"


@dataclass(frozen=True)
class Row:
    """One ratio. `low` and `high` are its spread (quartiles over the repeats, for steps).

    `target` reads >= if `more`, else <=. `limit`, where there is one, is the ratio that would be left if only the work
    that nobody can avoid took time: a step's convolutions at the speed that oneDNN gives them; for the loader, decoding
    the JPEGs, a thread on every core.
    """

    section: str
    name: str
    setting: str
    ratio: float
    low: float
    high: float
    unit: str = "x"
    target: Optional[float] = None
    more: bool = True
    limit: Optional[float] = None


RESNET18 = Case("resnet18_v1b", 32, 64, 10, regularise=1.9)
RESNET50_SMALL = Case("resnet50_v1b", 64, 16, 1000, regularise=1.8)
RESNET50 = Case("resnet50_v1b", 224, 8, 1000, regularise=1.4, ordinary=1.05)
TINY = Case("cifar_resnet20_v1", 8, 4, 10)  # --quick
STEPS = {"resnet18-32": RESNET18, "resnet50-64": RESNET50_SMALL, "resnet50-224": RESNET50}
NAMES = (*STEPS, "recipe", "schedule", "describe", "memory", "borders", "loader")


def run(
    names: Sequence[str] = (),
    repeats: int = 11,
    quick: bool = False,
    clock: str = "wall",
    show: Callable[[str], None] = lambda line: None,
) -> dict:
    """Measure; returns {"rows", "details", "device", "versions", ...} as plain JSON values.

    `names`: which of `NAMES`, all by default. `quick` puts a tiny network in the place of each, to try that
    all of it runs. `clock`: "wall", or "cpu" for processor seconds, which a busy machine disturbs less (with
    OMP_NUM_THREADS=1; waiting threads count too). `show` gets a line per section as it starts.
    UserError for a name that is none of `NAMES`.
    """
    for name in names:
        if name not in NAMES:
            raise UserError(f"unknown measurement '{name}': known are {', '.join(NAMES)}")
    if repeats < 1:
        raise UserError(f"--repeats: {repeats} is not a number of repeats; give 1 or more")
    rows: List[Row] = []
    details: Dict[str, dict] = {}
    for name in names or NAMES:
        show(name)
        if name in STEPS:
            found = steps(name, TINY if quick else STEPS[name], repeats, CLOCKS[clock])
        elif name == "recipe":
            found = recipe(TINY if quick else RESNET18, repeats, CLOCKS[clock])
        elif name == "schedule":
            # Every width allowed, the default, and widths that a CPU likes: oneDNN is slow on others.
            case, n_images, roundings = (TINY, 40, (1, 4)) if quick else (RESNET18, 12000, (1, 8, 16))
            each = {n: schedule(case, n_images, CLOCKS[clock], n) for n in roundings}
            found = [row for one in each.values() for row in one[0]], {f"round_to_{n}": each[n][1] for n in each}
        elif name == "describe":
            found = describing(*((TINY.network, TINY.shape) if quick else ("resnet101_v1", (3, 224, 224))))
        elif name == "memory":
            found = memory((TINY,) if quick else (RESNET18, RESNET50))
        elif name == "loader":
            found = loader((SMALL_PICTURES,) if quick else (PICTURES, SMALL_PICTURES), repeats, CLOCKS[clock])
        else:
            found = borders(*((TINY.network, (8,)) if quick else ("resnet18_v1b", (32, 64, 224))))
        rows += found[0]
        details[name] = found[1]
    environment = runtime.environment()
    when = {"date": environment["date"], "git_commit": environment["git_commit"], "repeats": repeats}
    return {
        "rows": [asdict(row) for row in rows],
        "details": details,
        "quick": quick,
        "clock": clock,
        "repeats": repeats,
        "measured": dict.fromkeys(details, when),
        **environment,
    }


def renewed(old: dict, new: dict) -> dict:
    """`run`'s old result with the sections of a new one in place of its own; `measured` says when each was made."""

    def of_section(key: str) -> dict:
        return {
            name: (new if name in new["details"] else old)[key][name]
            for name in NAMES
            if name in new["details"] or name in old["details"]
        }

    rows = [r for r in old["rows"] if r["section"] not in new["details"]] + new["rows"]
    return {
        **new,
        "rows": sorted(rows, key=lambda r: NAMES.index(r["section"])),
        "details": of_section("details"),
        "measured": of_section("measured"),
    }


def table(result: dict) -> str:
    """The rows of `run`'s result as a Markdown table."""
    lines = ["| measurement | on | ratio | spread | target | limit |", "|---|---|---:|---:|---:|---:|"]
    for row in (Row(**r) for r in result["rows"]):
        target = "-" if row.target is None else f"{'>=' if row.more else '<='} {row.target:g} {row.unit}"
        limit = "-" if row.limit is None else f"{row.limit:.2f} {row.unit}"
        spread = f"{row.low:.2f}-{row.high:.2f}"
        lines.append(f"| {row.name} | {row.setting} | **{row.ratio:.2f} {row.unit}** | {spread} | {target} | {limit} |")
    device = result["device"]
    lines += [
        "",
        f"{device['name']} ({device['cpu']}), threads: {device['threads']}, float32, "
        f"{result['clock']} clock, medians of {result['repeats']}; schedule: one run.",
    ]
    return "\n".join(lines)


# ---- steps -------------------------------------------------------------------------------------------------


def steps(name: str, case: Case, repeats: int, clock: Callable[[], float] = time.perf_counter) -> tuple:
    """Rows and details of one case: GluonCV's ordinary step, ours, GCP's, and what the time goes to.

    A ratio is the ordinary step's seconds over the other's, in the same round.
    """
    x, y = batch(case)
    others: Dict[str, Callable[[], Run]] = {
        "gcp": lambda: _step_of(case, "gcp"),
        "ours": lambda: _step_of(case, "ours"),
        "gluoncv_plain": lambda: gluoncv_step(case, x, y, static=False),
        "gluoncv_no_update": lambda: gluoncv_step(case, x, y, update=False),
    }
    base, ratios, median = gluoncv_step(case, x, y), {}, {}
    for key, make in others.items():
        # One at a time beside the ordinary step: with all of them in memory at once the later ones are slower.
        seconds = in_turns({"gluoncv": base, key: make()}, repeats, clock)
        ratios[key], median[key] = seconds["gluoncv"] / seconds[key], float(np.median(seconds[key]))
        median.setdefault("gluoncv", float(np.median(seconds["gluoncv"])))
        gc.collect()
    calls = {kind: conv_calls(case, kind) for kind in ("gcp", "ours")}
    convs = {kind: {kernel: sum(c) for kernel, c in found.items()} for kind, found in calls.items()}

    def row(label: str, to: str, target: Optional[float] = None, kernels: Sequence[str] = ()) -> Row:
        needed = sum(convs[to][k] for k in kernels)
        limit = median["gluoncv"] / needed if needed else None
        return Row(name, label, str(case), *spread(ratios[to]), target=target, limit=limit)

    rows = [
        row("GCP regularise step / GluonCV step", "gcp", case.regularise, CONV_KERNELS[:2]),
        row("our ordinary step / GluonCV step", "ours", case.ordinary, CONV_KERNELS),
        row("GluonCV step, plain hybridize() / static", "gluoncv_plain"),
    ]
    return rows, {
        "images_per_second": {key: case.batch / s for key, s in median.items()},
        "optimiser_share": 1 - 1 / float(np.median(ratios["gluoncv_no_update"])),
        "conv_seconds": convs,
    }


def conv_calls(case: Case, kind: str) -> Dict[str, List[float]]:
    """Seconds of each call of oneDNN's convolutions in one step, by its own clock, for each of `CONV_KERNELS`.

    In a process of its own, whose oneDNN reports every call. No calls where there is none (GPU builds).
    """
    lines = _in_own_process(case, kind, "print_step", {"MKLDNN_VERBOSE": "1", "DNNL_VERBOSE": "1"})
    calls: Dict[str, List[float]] = {kernel: [] for kernel in CONV_KERNELS}
    for line in lines[lines.index(MARK) :]:
        fields = line.split(",")  # dnnl_verbose,exec,cpu,primitive,implementation,kind,...,milliseconds
        if len(fields) > 6 and fields[1] == "exec" and fields[3] == "convolution" and fields[5] in calls:
            calls[fields[5]].append(float(fields[-1]) / 1e3)
    return calls


def print_step(case: Case, kind: str, n_warmup: int = 3) -> None:
    """Take a few steps of the kind, print `MARK`, take one more."""
    step = _step_of(case, kind)
    for i in range(n_warmup + 1):
        if i == n_warmup:
            print(MARK, flush=True)
        step()
        mx.nd.waitall()


def _step_of(case: Case, kind: str) -> Run:
    if kind == "gluoncv":
        return gluoncv_step(case, *batch(case))
    return repeated({"gcp": gcp_step, "ours": ordinary_step}[kind](case.built()), case)


def batch(case: Case) -> tuple:
    """One random batch on the device: images (batch, 3, side, side) and labels (batch,)."""
    return CLASSIFICATION.random_batch(case.shape, case.classes, case.batch)


def gluoncv_step(case: Case, x: mx.nd.NDArray, y: mx.nd.NDArray, static: bool = True, update: bool = True) -> Run:
    """The step of GluonCV's own training script; `static` is how that script hybridizes."""
    block = get_model(case.network, classes=case.classes)
    block.initialize(mx.init.MSRAPrelu(), ctx=x.context)
    block.infer_shape(x)
    for p in block.collect_params().values():
        p._finish_deferred_init()  # the arrays belong to the built network, not to the first step
    if static:
        block.hybridize(static_alloc=True, static_shape=True)
    else:
        block.hybridize()
    loss_of = gluon.loss.SoftmaxCrossEntropyLoss()
    trainer = gluon.Trainer(block.collect_params(), "sgd", {"learning_rate": LR, "momentum": MOMENTUM, "wd": WD})

    def step(x: mx.nd.NDArray = x, y: mx.nd.NDArray = y) -> None:
        with autograd.record():
            loss = loss_of(block(x), y)
        loss.backward()
        if update:
            trainer.step(len(x))

    return step


def ordinary_step(net: Network, **how) -> OrdinaryStep:
    """The step of ordinary training on all weights; `how` is its objective."""
    return OrdinaryStep(net, Objective(**how), lambda block: SGD(block, MOMENTUM, WD))


def gcp_step(net: Network) -> ProximalStep:
    """The step of GCP's regularise phase."""
    net = rescale(with_gates(net))
    return ProximalStep(net, Objective(), gcp_method.channel_penalties(net, macs(net)), MOMENTUM)


def repeated(step: Step, case: Case) -> Run:
    """The step on the same random batch again and again."""
    x, y = batch(case)
    return lambda: step(x, y, 0, LR)


def recipe(case: Case, repeats: int, clock: Callable[[], float] = time.perf_counter) -> tuple:
    """Rows and details of what mixup and a teacher (the network itself) cost: the plain step's seconds over theirs."""
    net, rows, details = case.built(), [], {}
    teacher, plain = Teacher(net), repeated(ordinary_step(net), case)
    for label, how in {
        "mixup": {"mixup": 0.2},
        "teacher of its size": {"teacher": teacher},
        "both": {"mixup": 0.2, "teacher": teacher},
    }.items():
        seconds = in_turns({"plain": plain, label: repeated(ordinary_step(net, **how), case)}, repeats, clock)
        ratios = seconds["plain"] / seconds[label]
        rows.append(Row("recipe", f"step with {label} / plain step", str(case), *spread(ratios)))
        details[label] = {key: case.batch / float(np.median(s)) for key, s in seconds.items()}
        gc.collect()
    return rows, {"images_per_second": details}


def spread(ratios: np.ndarray) -> List[float]:
    """Median and quartiles, in the order of a `Row`."""
    return np.percentile(ratios, (50, 25, 75)).tolist()


def in_turns(
    things: Dict[str, Run], repeats: int, clock: Callable[[], float] = time.perf_counter, n_warmup: int = 2
) -> Dict[str, np.ndarray]:
    """Seconds of each thing, shape (repeats,): one after the other, in `repeats` rounds, each waited for."""
    for thing in things.values():
        for _ in range(n_warmup):
            thing()
        mx.nd.waitall()
    seconds: Dict[str, List[float]] = {key: [] for key in things}
    for _ in range(repeats):
        for key, thing in things.items():
            start = clock()
            thing()
            mx.nd.waitall()
            seconds[key].append(clock() - start)
    return {key: np.array(s) for key, s in seconds.items()}


# ---- the schedule ------------------------------------------------------------------------------------------


def random_data(case: Case, n_images: int) -> Dataset:
    """Random images and labels; a tenth of `n_images` more for validation, which the schedule looks at."""
    rng = np.random.default_rng(0)
    n_validation = max(1, n_images // 10)
    n = n_images + n_validation
    images = rng.integers(0, 256, (n,) + case.shape, np.uint8)
    labels = rng.integers(0, case.classes, n).astype(np.int32)
    mean, std = np.full(3, 127.5, np.float32), np.full(3, 73.9, np.float32)
    train = Split(images, labels, np.arange(n_images), mean, std)
    held_out = Split(images, labels, np.arange(n_images, n), mean, std)
    return Dataset("random", case.shape, tuple(map(str, range(case.classes))), train, held_out, held_out)


def schedule(case: Case, n_images: int, clock: Callable[[], float] = time.perf_counter, round_to: int = 1) -> tuple:
    """Row and details of a whole GCP schedule in epochs of GluonCV's ordinary step on the dense network.

    Everything between the dense network and the pruned one counts: making blocks, checkpoints, statistics, the looks at
    the validation images. The ordinary epoch is timed before and after; the spread is the ratios to either.
    """
    data = random_data(case, n_images)
    cfg = Config.model_validate(
        {
            "name": "benchmark",
            "scale": "smoke",
            "model": {"name": case.network},
            "data": {"name": "digits", "input": list(case.shape), "batch": case.batch},
            "train": {"epochs": 1},
            "prune": {
                "method": "gcp",
                "target": 0.2,
                "round_to": round_to,
                # Random labels teach nothing: rates that move nothing, where larger ones can end in NaN. The
                # penalty is relative to them, so scales shrink and channels go all the same.
                "gcp": {"iterations": 4, "lr": 1e-6, "recover_lr": 1e-6},
            },
        }
    )
    step = gluoncv_step(case, *batch(case))
    ctx = device()

    def epoch(number: int) -> float:
        mx.nd.waitall()
        start = clock()
        for x, y, _ in data.train.batches(case.batch, seed=number):
            step(mx.nd.array(x, ctx), mx.nd.array(y, ctx))
        mx.nd.waitall()
        return clock() - start

    # An untrained network's running statistics are not its activations'; frozen, they would let it diverge.
    batches, ours = Batches(data.train, case.batch, seed=0), ordinary_step(case.built())
    fit(ours, batches, schedules.constant(0.01, batches.per_epoch))
    dense = ours.network()
    step()  # builds the graph and its memory, once for all epochs
    before = epoch(1)
    cost = macs(dense)
    budget = Budget(cost, cost(dense.widths), cfg.prune.target, cfg.prune.round_to)
    with tempfile.TemporaryDirectory() as folder:
        start = clock()
        how = dict(augment=cfg.data.augment, statistics_images=cfg.prune.statistics_images, moved=cfg.prune.moved)
        problem = Problem(dense, budget, data, cfg.seed, cfg.data.batch, **how)
        run = SimpleNamespace(path=Path(folder), log=lambda event, **values: None)
        outcome = gcp_method.gcp(problem, cfg.prune.gcp, run)
        small, iterations = outcome.network, outcome.history
        mx.nd.waitall()
        seconds = clock() - start
    after = epoch(2)
    setting = (
        f"{case}, {n_images} images, T={cfg.prune.gcp.iterations}, to {cfg.prune.target:g} of the MACs, "
        f"widths multiples of {round_to}"
    )
    row = Row(
        "schedule",
        "GCP schedule / ordinary epoch",
        setting,
        2 * seconds / (before + after),
        seconds / max(before, after),
        seconds / min(before, after),
        "epochs",
        3.5,
        more=False,
    )
    return [row], {
        "schedule_s": seconds,
        "epoch_before_s": before,
        "epoch_after_s": after,
        "cost_kept": [one["cost_kept"] for one in iterations],
        "macs_kept": cost(small.widths) / budget.original,
    }


# ---- describing --------------------------------------------------------------------------------------------


def describing(network: str, shape: Sequence[int], repeats: int = 3) -> tuple:
    """Row and details of opening and describing a network, walking its groups and halving every one of them.

    In wall seconds, imports not counted. The first time counts: that is what a command waits for.
    """
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        net = from_gluoncv(network, shape)
        facts = describe(net)
        middle = time.perf_counter()
        shrink(net, {g.name: np.arange(max(1, g.size // 2)) for g in net.groups})
        seconds.append((middle - start, time.perf_counter() - middle))
    total = [a + b for a, b in seconds]
    setting = f"{network}, {shape[1]} px, {len(facts['groups'])} groups"
    row = Row("describe", "describe + groups + shrink", setting, total[0], min(total), max(total), "s", 2.0, more=False)
    return [row], {"describe_s": [a for a, _ in seconds], "shrink_s": [b for _, b in seconds]}


# ---- borders ---------------------------------------------------------------------------------------------


def borders(network: str, sides: Sequence[int], n_images: int = 4) -> tuple:
    """Rows and details of how far a network with half of its channels removed is from the masked one.

    A removed channel's constant moves into the next running mean, which is exact but within a kernel's reach of
    zero-padded borders. Worst case: channels and norms drawn at random, shifts as large as scales, nothing recovered.
    In units of the largest output, the largest difference over `n_images`; the details also have the difference when
    the constants are dropped instead of moved.
    """
    rows, details = [], {}
    for side in sides:
        rng = np.random.default_rng(0)
        net = from_gluoncv(network, (3, side, side), seed=0)
        draw = {
            "gamma": lambda n: rng.uniform(0.5, 1.5, n) * rng.choice([-1, 1], n),
            "beta": lambda n: rng.normal(0.3, 0.5, n),
            "running_mean": lambda n: rng.normal(0, 0.3, n),
            "running_var": lambda n: rng.uniform(0.5, 1.5, n),
        }
        net = net.with_arrays(
            {
                k: draw[end](len(v)).astype(np.float32)
                for k, v in net.arrays.items()
                for end in draw
                if k.endswith("_" + end)
            }
        )
        keep = {g.name: np.sort(rng.choice(g.size, g.size // 2, replace=False)) for g in net.groups}
        images = rng.standard_normal((n_images, 3, side, side)).astype(np.float32)
        masked = silence(net, keep)
        expected = predict(masked, images)
        silent = {
            beta: np.where(np.isin(np.arange(g.size), keep[g.name]), net.arrays[beta], 0).astype(np.float32)
            for g in net.groups
            for beta in (net.norm_arrays(norm)[1] for norm in g.norms)
            if beta is not None
        }

        def error(outputs: np.ndarray) -> float:
            return float(np.abs(outputs - expected).max() / np.abs(expected).max())

        moved = error(predict(shrink(net, keep), images))
        dropped = error(predict(masked.with_arrays(silent), images))
        details[str(side)] = {"constants_moved": moved, "constants_dropped": dropped}
        rows.append(
            Row(
                "borders",
                "removed against masked, half of the channels",
                f"{network}, {side} px",
                moved,
                moved,
                moved,
                "of the largest output",
            )
        )
    return rows, details


# ---- loader -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Photos:
    """JPEGs to load: how many, their height and width, the side of the input, images in a batch."""

    n: int
    height: int
    width: int
    side: int
    batch: int
    target: Optional[float] = None

    def __str__(self) -> str:
        return f"{self.n} JPEGs of {self.width}x{self.height}, {self.side} px, batch {self.batch}"


PICTURES = Photos(512, 375, 500, 224, 64, target=0.95)  # ImageNet's median size
SMALL_PICTURES = Photos(512, 28, 28, 32, 64)


def loader(cases: Sequence[Photos], repeats: int, clock: Callable[[], float] = time.perf_counter) -> tuple:
    """Rows and details of our ImageNet training loader against `ImageRecordIter`: seconds of MXNet's pass over ours.

    The same file, augmentation (GluonCV's recipe) and number of threads; each pass from opening to its last batch on
    the device.
    """
    rows, details, workers = [], {}, physical_cores()
    for case in cases:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "train.rec"
            prepare.write_records(path, photos(case), prepare.Encoding(None))
            records_in = Records(path)
            shape = (3, case.side, case.side)
            split = Split(
                decode.Pictures(records_in, shape, workers),
                records_in.labels,
                np.arange(case.n),
                np.full(3, 127.5, np.float32),
                np.full(3, 73.9, np.float32),
            )
            contents = [records_in.read(row) for row in range(case.n)]
            seconds = in_turns(
                {
                    "ImageRecordIter": lambda: plain_pass(path, case, workers),
                    "ours": lambda: [
                        mx.nd.array(x, device()).wait_to_read()
                        for x, _, _ in split.batches(case.batch, seed=0, augment="imagenet")
                    ],
                    "decoding": lambda: list(
                        decode.in_order(lambda c: decode.decoded(c, "").shape, contents, workers, 8 * workers)
                    ),
                },
                repeats,
                clock,
                n_warmup=1,
            )
        low, ratio, high = np.percentile(seconds["ImageRecordIter"] / seconds["ours"], (25, 50, 75)).tolist()
        median = {key: float(np.median(s)) for key, s in seconds.items()}
        rows.append(
            Row(
                "loader",
                "our ImageNet loader / ImageRecordIter",
                str(case),
                ratio,
                low,
                high,
                target=case.target,
                limit=median["ImageRecordIter"] / median["decoding"],
            )
        )
        details[str(case)] = {"images_per_second": {key: case.n / s for key, s in median.items()}, "threads": workers}
    return rows, details


def photos(case: Photos) -> prepare.Labelled:
    """JPEGs (quality 95) of random parts of scikit-learn's two photographs, scaled to the size asked for."""
    from sklearn.datasets import load_sample_images

    originals, rng, contents = load_sample_images().images, np.random.default_rng(0), []
    for k in range(case.n):
        whole = originals[k % len(originals)][..., ::-1]
        height = int(rng.integers(whole.shape[0] // 2, whole.shape[0] + 1))
        width = min(whole.shape[1], round(height * case.width / case.height))
        top, left = rng.integers(0, whole.shape[0] - height + 1), rng.integers(0, whole.shape[1] - width + 1)
        part = cv2.resize(
            np.ascontiguousarray(whole[top : top + height, left : left + width]),
            (case.width, case.height),
            interpolation=cv2.INTER_AREA,
        )
        contents.append(cv2.imencode(".jpg", part, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes())
    return prepare.Labelled(_Contents(contents), [str(k) for k in range(case.n)], [k % 10 for k in range(case.n)])


class _Contents:
    """A `Source` in memory."""

    def __init__(self, contents: List[bytes]) -> None:
        self._contents = contents

    def name(self, row: int) -> str:
        """Its number."""
        return f"image {row}"

    def read(self, row: int) -> bytes:
        """The encoded image."""
        return self._contents[row]


def plain_pass(path: Path, case: Photos, workers: int) -> None:
    """One pass of MXNet's own iterator as GluonCV sets it up for ImageNet."""
    batches = mx.io.ImageRecordIter(
        path_imgrec=str(path),
        path_imgidx=str(path.with_suffix(".idx")),
        preprocess_threads=workers,
        shuffle=True,
        batch_size=case.batch,
        data_shape=(3, case.side, case.side),
        mean_r=127.5,
        mean_g=127.5,
        mean_b=127.5,
        std_r=73.9,
        std_g=73.9,
        std_b=73.9,
        rand_mirror=True,
        random_resized_crop=True,
        max_aspect_ratio=4 / 3,
        min_aspect_ratio=3 / 4,
        max_random_area=1,
        min_random_area=0.08,
        brightness=0.4,
        saturation=0.4,
        contrast=0.4,
        pca_noise=0.1,
        verbose=False,
    )
    for one in batches:
        one.data[0].as_in_context(device()).wait_to_read()


# ---- memory ------------------------------------------------------------------------------------------------


def memory(cases: Sequence[Case]) -> tuple:
    """Rows and details of peak memory, GCP's step over GluonCV's, each kind of step in a process of its own.

    Two ratios each: of the whole processes, and of what the steps add to imports and the built network. The arrays
    that a block was made from are not kept, as GluonCV's step keeps none; `training.fit` does keep them.
    """
    rows, details = [], {}
    for case in cases:
        peaks = {kind: json.loads(_in_own_process(case, kind, "print_peak", {})[-1]) for kind in ("gluoncv", "gcp")}
        whole = peaks["gcp"]["peak_mb"] / peaks["gluoncv"]["peak_mb"]
        added = (peaks["gcp"]["peak_mb"] - peaks["gcp"]["built_mb"]) / max(
            1e-9, peaks["gluoncv"]["peak_mb"] - peaks["gluoncv"]["built_mb"]
        )
        name = "peak memory, GCP step / GluonCV step"
        rows += [
            Row("memory", f"{name}, whole process", str(case), whole, whole, whole, target=1.1, more=False),
            Row("memory", f"{name}, beyond imports and network", str(case), added, added, added),
        ]
        details[str(case)] = peaks
    return rows, details


def _in_own_process(case: Case, kind: str, function: str, variables: Mapping[str, str]) -> List[str]:
    """The lines that one of this room's functions prints for a case and a kind of step."""
    code = f"from gcp import benchmark as b; b.{function}(b.{case!r}, {kind!r})"
    root = str(Path(__file__).resolve().parent.parent)
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path, **variables}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], env=environment, check=True, stdout=subprocess.PIPE, text=True
    )
    return done.stdout.splitlines()


def print_peak(case: Case, kind: str, n_steps: int = 3) -> None:
    """Make a step of the kind, take it a few times, print memory when built and at its peak (MB) as JSON."""
    step = _step_of(case, kind)
    mx.nd.waitall()
    gc.collect()  # GluonCV's blocks are cycles; in a run of GCP there is none, the dense network comes from a file
    built = _resident_mb("VmRSS")
    for _ in range(n_steps):
        step()
        mx.nd.waitall()
    print(json.dumps({"built_mb": built, "peak_mb": _resident_mb("VmHWM")}))


def _resident_mb(key: str) -> float:
    """Resident memory now (VmRSS) or at most (VmHWM)."""
    # Linux keeps a parent's peak in a child's ru_maxrss, across exec; /proc starts afresh.
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    line = next(line for line in status.read_text().splitlines() if line.startswith(key + ":"))
    return int(line.split()[1]) / 1024

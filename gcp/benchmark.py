"""How fast the toolkit is, as ratios: GCP's steps and schedule against GluonCV's training, our loader against MXNet's.

Input: the names of the measurements (`NAMES`) and a number of repeats. Output: rows, one per ratio, as plain JSON
values and as a Markdown table. Things that are compared are timed in turns within one process, so that whatever else
the machine does affects them alike. Data are random, because the numbers in a batch do not change how long a step
takes.
"""

from __future__ import annotations

import gc
import itertools
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
import tracemalloc
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple

import cv2
import numpy as np
from pydantic import BaseModel, ConfigDict, field_validator
from sklearn.linear_model import lars_path_gram
from threadpoolctl import threadpool_limits

from gcp import runtime
from gcp.backend.blocks import predict
from gcp.backend.engine import autograd, gluon, mx
from gcp.backend.zoo import from_gluoncv, get_model
from gcp.cost import latency
from gcp.cost.analytic import describe, macs
from gcp.cost.base import Budget
from gcp.cost.memory import peak_memory
from gcp.data import decode, prepare
from gcp.data.base import Dataset, Split
from gcp.data.sources import Records
from gcp.errors import UserError
from gcp.experiment.config import Prune
from gcp.experiment.zoo import DRAWN
from gcp.graph.network import Network
from gcp.graph.surgery import rescale, resized, shrink, silence, with_gates
from gcp.methods import gcp as gcp_method
from gcp.methods import layerwise
from gcp.methods.allocation import ALLOCATIONS, chooser
from gcp.methods.base import Problem
from gcp.methods.cp import by_lasso, of_norm_1
from gcp.methods.criteria import CRITERIA
from gcp.methods.lasso import lasso
from gcp.methods.thinet import least_missed
from gcp.methods.uniform import uniform_widths
from gcp.methods.width_search import OwsOptions
from gcp.options import Options
from gcp.search.candidates import Judged
from gcp.search.exploration import SOLVERS, EvolutionOptions, Limit, Question
from gcp.search.quality import QUALITIES
from gcp.search.solvers import Solver
from gcp.search.space import Space, SpaceOptions
from gcp.storage import read_json
from gcp.train import schedules
from gcp.train.distributed import device
from gcp.train.loop import Batches, fit
from gcp.train.losses import Objective, Teacher
from gcp.train.optimisers import SGD
from gcp.train.slimmable import Sampling, SlimmableStep
from gcp.train.steps import OrdinaryStep, ProximalStep, Step
from gcp.train.tasks import CLASSIFICATION

Run = Callable[[], None]  # one step, or whatever is timed
# oneDNN's names; GCP's frozen convs need no weight gradients.
CONV_KERNELS = ("forward_training", "backward_data", "backward_weights")
MARK = "-- the step that counts --"
# Too small to change a weight: only a step's arithmetic is timed, and it must not end in NaN on random data.
LR, MOMENTUM, WD = 1e-8, 0.9, 1e-4
PIXELS = np.full(3, 127.5, np.float32), np.full(3, 73.9, np.float32)  # mean and standard deviation


@dataclass(frozen=True)
class Case:
    """A network and its input: `side` in pixels; targets are ratios of images per second, or None."""

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
        """The network with random weights, which are the same at every call."""
        return from_gluoncv(self.network, self.shape, self.classes, seed=0)

    def __str__(self) -> str:
        return f"{self.network}, {self.side} px, batch {self.batch}"


@dataclass(frozen=True)
class Row:
    """One ratio. `low` and `high` are its spread (for steps, the quartiles over the repeats).

    `target` is a lower bound if `more`, else an upper bound. `limit`, if there is one, is the ratio that would remain
    if only unavoidable work took time: for a step, its convolutions at the speed that oneDNN reaches; for the loader,
    decoding the JPEGs with one thread per core.
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


Found = Tuple[List[Row], dict]  # what a measurement returns: rows, and details as plain JSON values
RESNET18 = Case("resnet18_v1b", 32, 64, 10, regularise=1.9)
MOBILENET = Case("mobilenet1.0", 32, 64, 10)
RESNET50_SMALL = Case("resnet50_v1b", 64, 16, 1000, regularise=1.8)
RESNET50 = Case("resnet50_v1b", 224, 8, 1000, regularise=1.4, ordinary=1.05)
TINY = Case("cifar_resnet20_v1", 8, 4, 10)  # --quick
# Networks and image sides for which memory plans are compared; tests use some of them.
PLANNED = {
    "resnet18_v1b": 64,
    "resnet50_v1d": 64,
    "mobilenet0.25": 32,
    "mobilenetv2_0.25": 32,
    "mobilenetv2_0.5": 64,
    "se_resnet18_v1": 64,
    "shufflenet_v2": 64,
    "cifar_resnext29_32x4d": 16,
    "squeezenet1.1": 224,
    "densenet121": 224,
}
ROOT = Path(__file__).resolve().parent.parent  # of a checkout
STEPS = {"resnet18-32": RESNET18, "resnet50-64": RESNET50_SMALL, "resnet50-224": RESNET50}
SMALL_IMAGES = (
    Case("resnet18_v1b", 16, 64, 10),
    RESNET18,
    Case("mobilenetv2_0.5", 32, 64, 10),
    Case("mobilenetv2_0.5", 64, 64, 10),
)
NAMES = (*STEPS, "small-images", "recipe", "widths", "schedule", "describe", "selection", "layerwise", "slimmable",
         "solver", "architectures", "memory", "planner", "borders", "loader")  # fmt: skip


def run(
    names: Sequence[str] = (), repeats: int = 11, quick: bool = False, show: Callable[[str], None] = lambda line: None
) -> dict:
    """Measure; returns {"rows", "details", "device", "versions", ...} as plain JSON values.

    `names`: which of `NAMES` to measure, by default all. `quick` replaces every network by a tiny one, to check that
    everything runs. `show` is called with the name of each measurement as it starts. Raises UserError for a name that
    is not in `NAMES`.
    """
    measurements: Dict[str, Callable[[], Found]] = {
        **{name: partial(steps, name, TINY if quick else case, repeats) for name, case in STEPS.items()},
        "small-images": partial(small_images, (TINY,) if quick else SMALL_IMAGES, repeats),
        "recipe": partial(recipe, TINY if quick else RESNET18, repeats),
        "widths": partial(widths, TINY if quick else RESNET18, repeats),
        # Every width allowed, the default, and widths that suit a CPU: oneDNN is slow on others.
        "schedule": partial(schedules_of, *((TINY, 40, (1, 4)) if quick else (RESNET18, 12000, (1, 8, 16)))),
        "describe": partial(describing, *((TINY.network, TINY.shape) if quick else ("resnet101_v1", (3, 224, 224)))),
        "selection": partial(selection, *((TINY.network, TINY.shape) if quick else ("resnet50_v1b", (3, 224, 224)))),
        "layerwise": partial(
            layerwise_selection, *((TINY.network, TINY.shape) if quick else ("resnet50_v1b", (3, 224, 224)))
        ),
        "slimmable": partial(slimmable, (TINY,) if quick else (MOBILENET, RESNET18), repeats),
        "solver": partial(solving, *(((TINY.network,), TINY.shape) if quick else SOLVED)),
        "architectures": partial(architectures, 100 if quick else 10_000, 50 if quick else 5000),
        "memory": partial(memory, (TINY,) if quick else (RESNET18, RESNET50)),
        "planner": partial(planner, dict(list(PLANNED.items())[:1]) if quick else PLANNED),
        "borders": partial(borders, *((TINY.network, (8,)) if quick else ("resnet18_v1b", (32, 64, 224)))),
        "loader": partial(loader, (SMALL_PICTURES,) if quick else (PICTURES, SMALL_PICTURES), repeats),
    }
    for name in names:
        if name not in NAMES:
            raise UserError(f"unknown measurement '{name}'; choose from {', '.join(NAMES)}")
    rows, details, environment = [], {}, runtime.environment()
    for name in names or NAMES:
        show(name)
        found, details[name] = measurements[name]()
        rows += [asdict(row) for row in found]
    when = {"date": environment["date"], "git_commit": environment["git_commit"], "repeats": repeats}
    measured = dict.fromkeys(details, when)
    return {"rows": rows, "details": details, "quick": quick, "repeats": repeats, "measured": measured, **environment}


class Measured(BaseModel):
    """When a section was measured, with which code, and in how many rounds."""

    model_config = ConfigDict(extra="forbid", strict=True)

    date: str
    git_commit: Optional[str]
    repeats: int


class Result(BaseModel):
    """What `run` returns, and what a file of its results holds."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    rows: List[Row]
    details: Dict[str, Any]
    quick: bool
    repeats: int
    measured: Dict[str, Measured]
    git_commit: Optional[str]
    versions: Dict[str, Optional[str]]
    device: Dict[str, Any]
    date: str

    @field_validator("rows")
    @classmethod
    def _known(cls, rows: List[Row]) -> List[Row]:
        for row in rows:
            if row.section not in NAMES:
                raise ValueError(f"{row.section!r} must be one of {', '.join(NAMES)}")
        return rows


def read(path: Path) -> dict:
    """A file of `run`'s results, as plain JSON values. Raises UserError if it is not such a file."""
    return read_json(path, Result, "give another file").model_dump(mode="json")


def renewed(old: dict, new: dict) -> dict:
    """An old result of `run`, updated with the sections of a new one; `measured` says when each was measured."""

    def of_section(key: str) -> dict:
        both = {**old[key], **new[key]}
        return {name: both[name] for name in NAMES if name in both}

    rows = [r for r in old["rows"] if r["section"] not in new["details"]] + new["rows"]
    rows.sort(key=lambda r: NAMES.index(r["section"]))
    return {**new, "rows": rows, "details": of_section("details"), "measured": of_section("measured")}


def table(result: dict) -> str:
    """The rows of `run`'s result as a Markdown table."""
    lines = ["| measurement | on | ratio | spread | target | limit |", "|---|---|---:|---:|---:|---:|"]
    for row in (Row(**r) for r in result["rows"]):
        target = "-" if row.target is None else f"{'>=' if row.more else '<='} {row.target:g} {row.unit}"
        limit = "-" if row.limit is None else f"{row.limit:.2f} {row.unit}"
        spread = f"{row.low:.2f}-{row.high:.2f}"
        lines.append(f"| {row.name} | {row.setting} | **{row.ratio:.2f} {row.unit}** | {spread} | {target} | {limit} |")
    device = result["device"]
    machine = f"{device['name']} ({device['cpu']}), threads: {device['threads']}, float32, wall clock"
    repeats = sorted({each["repeats"] for each in result["measured"].values()})
    rounds = " to ".join(str(n) for n in dict.fromkeys((repeats[0], repeats[-1])))
    return "\n".join([*lines, "", f"{machine}, medians of {rounds}; schedule: one run."])


# ---- steps -------------------------------------------------------------------------------------------------


def steps(name: str, case: Case, repeats: int) -> Found:
    """Rows and details of one case: GluonCV's ordinary step, ours, GCP's, and where the time goes.

    A ratio is the seconds of GluonCV's ordinary step over those of the other step, in the same round.
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
        # One at a time against the ordinary step: with all of them in memory at once, the later ones are slower.
        seconds = in_turns({"gluoncv": base, key: make()}, repeats)
        ratios[key] = seconds["gluoncv"] / seconds[key]
        median = {**medians(seconds), **median}
        gc.collect()
    convs = {kind: {kernel: sum(calls) for kernel, calls in conv_calls(case, kind).items()} for kind in ("gcp", "ours")}

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
    """Seconds of each call of oneDNN's convolutions in one step, by oneDNN's own clock, for each of `CONV_KERNELS`.

    They are measured in a separate process, in which oneDNN reports every call. There are no calls without oneDNN (GPU
    builds).
    """
    lines = _in_own_process(case, kind, "print_step", {"MKLDNN_VERBOSE": "1", "DNNL_VERBOSE": "1"})
    calls: Dict[str, List[float]] = {kernel: [] for kernel in CONV_KERNELS}
    for line in lines[lines.index(MARK) :]:
        fields = line.split(",")  # dnnl_verbose,exec,cpu,primitive,implementation,kind,...,milliseconds
        if len(fields) > 6 and fields[1] == "exec" and fields[3] == "convolution" and fields[5] in calls:
            calls[fields[5]].append(float(fields[-1]) / 1e3)
    return calls


def print_step(case: Case, kind: str, n_warmup: int = 3) -> None:
    """Take a few steps of the given kind, print `MARK`, and take one more step."""
    step = _step_of(case, kind)
    for _ in range(n_warmup):
        timed(step)
    print(MARK, flush=True)
    timed(step)


def _step_of(case: Case, kind: str) -> Run:
    """A step of GluonCV's training ("gluoncv"), our ordinary training ("ours") or GCP's regularise phase ("gcp")."""
    if kind == "gluoncv":
        return gluoncv_step(case, *batch(case))
    if kind == "ours":
        return repeated(ordinary_step(case.built()), case)
    net = rescale(with_gates(case.built()))
    return repeated(ProximalStep(net, Objective(), gcp_method.channel_penalties(net, macs(net)), MOMENTUM), case)


def batch(case: Case) -> tuple:
    """One random batch on the device: images (batch, 3, side, side) and labels (batch,)."""
    return CLASSIFICATION.random_batch(case.shape, case.classes, case.batch)


def gluoncv_step(case: Case, x: mx.nd.NDArray, y: mx.nd.NDArray, static: bool = True, update: bool = True) -> Run:
    """The step of GluonCV's own training script; with `static`, it hybridizes as that script does."""
    block = get_model(case.network, classes=case.classes)
    block.initialize(mx.init.MSRAPrelu(), ctx=x.context)
    block.infer_shape(x)
    for p in block.collect_params().values():
        p._finish_deferred_init()  # the arrays belong to the built network, not to the first step
    block.hybridize(**({"static_alloc": True, "static_shape": True} if static else {}))
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
    """The step of ordinary training on all weights; `how` holds the options of its objective."""
    return OrdinaryStep(net, Objective(**how), lambda block: SGD(block, MOMENTUM, WD))


def repeated(step: Step, case: Case) -> Run:
    """A function that takes the step on the same random batch at every call."""
    x, y = batch(case)
    return lambda: step(x, y, 0, LR)


def small_images(cases: Sequence[Case], repeats: int) -> Found:
    """Rows and details of our ordinary step against GluonCV's where late layers see only a few pixels.

    On a processor without AVX-512, we train such layers in other forms (`backend.blocks.reduced`).
    """
    rows, details = [], {}
    for case in cases:
        both = {"gluoncv": gluoncv_step(case, *batch(case)), "ours": _step_of(case, "ours")}
        seconds = in_turns(both, repeats)
        ratios = spread(seconds["gluoncv"] / seconds["ours"])
        rows.append(Row("small-images", "our ordinary step / GluonCV step", str(case), *ratios))
        details[str(case)] = {key: case.batch / s for key, s in medians(seconds).items()}
        gc.collect()
    return rows, {"images_per_second": details}


def recipe(case: Case, repeats: int) -> Found:
    """Rows and details of what mixup and a teacher (the network itself) cost: seconds of the plain step over theirs."""
    net, rows, details = case.built(), [], {}
    teacher, plain = Teacher(net), repeated(ordinary_step(net), case)
    for label, how in {
        "mixup": {"mixup": 0.2},
        "teacher of its size": {"teacher": teacher},
        "both": {"mixup": 0.2, "teacher": teacher},
    }.items():
        seconds = in_turns({"plain": plain, label: repeated(ordinary_step(net, **how), case)}, repeats)
        ratios = seconds["plain"] / seconds[label]
        rows.append(Row("recipe", f"step with {label} / plain step", str(case), *spread(ratios)))
        details[label] = {key: case.batch / s for key, s in medians(seconds).items()}
        gc.collect()
    return rows, {"images_per_second": details}


class AsItIs(OrdinaryStep):
    """An ordinary step whose groups are not filled up with idle channels."""

    width = 1


def widths(case: Case, repeats: int) -> Found:
    """Rows and details of what idle channels gain: seconds of a step without them over those of a step with them.

    The networks are cut to random widths of about half, once to any width and once to multiples of 8.
    """
    rows, details, rng, dense = [], {}, np.random.default_rng(0), case.built()
    for multiple in (1, 8):
        kept = {g: max(1, round(n * rng.uniform(0.35, 0.65) / multiple)) * multiple for g, n in dense.widths.items()}
        net = shrink(dense, {g: range(min(n, dense.widths[g])) for g, n in kept.items()})
        as_it_is = AsItIs(net, Objective(), lambda block: SGD(block, MOMENTUM, WD))
        filled = ordinary_step(net)
        both = {"as_it_is": repeated(as_it_is, case), "filled": repeated(filled, case)}
        seconds = in_turns(both, repeats)
        label = f"step of widths filled up to x{filled.width} / as they are"
        setting = f"{case}, half of it, multiples of {multiple}"
        rows.append(Row("widths", label, setting, *spread(seconds["as_it_is"] / seconds["filled"])))
        details[f"round_to_{multiple}"] = {
            "images_per_second": {key: case.batch / s for key, s in medians(seconds).items()},
            "macs_filled": macs(filled.wide)(filled.wide.widths) / macs(net)(net.widths),
        }
    return rows, details


def spread(ratios: np.ndarray) -> List[float]:
    """Median and quartiles, in the order of a `Row`'s fields."""
    return np.percentile(ratios, (50, 25, 75)).tolist()


def medians(seconds: Mapping[str, np.ndarray]) -> Dict[str, float]:
    """The median seconds of each thing."""
    return {key: float(np.median(s)) for key, s in seconds.items()}


def timed(thing: Run) -> float:
    """Seconds that the thing takes, until MXNet has finished it."""
    start = time.perf_counter()
    thing()
    mx.nd.waitall()
    return time.perf_counter() - start


def in_turns(things: Dict[str, Run], repeats: int, n_warmup: int = 2) -> Dict[str, np.ndarray]:
    """Seconds of each thing, shape (repeats,), timed one after the other in each of `repeats` rounds."""
    for thing in things.values():
        for _ in range(n_warmup):
            timed(thing)
    rounds = [[timed(thing) for thing in things.values()] for _ in range(repeats)]
    return dict(zip(things, np.array(rounds).T))


# ---- width search ----------------------------------------------------------------------------------------------------

# The networks and input for timing exact widths, and the most seconds that one bound should take on one core.
SOLVED = ("resnet101_v1", "mobilenet1.0"), (3, 224, 224)
MOST_S = {"resnet101_v1": 5.0, "mobilenet1.0": 0.5}


def slimmable(cases: Sequence[Case], repeats: int) -> Found:
    """Rows and details of a slimmable step, with a method's default options, in ordinary steps of the network itself.

    Eight steps in a row are timed, because widths are drawn anew for every fourth. For comparison, three steps of the
    widest network are timed: the least that silencing its channels, instead of cutting the network, would take.
    """
    rows, details = [], {}
    for case in cases:
        net, options = case.built(), OwsOptions()
        levels = options.grid(net.widths, 1 if case is TINY else 16)
        widest, count = resized(net, {g: of[-1] for g, of in levels.items()}), itertools.count()
        x, y = batch(case)
        step = SlimmableStep(
            widest,
            CLASSIFICATION,
            lambda block: SGD(block, MOMENTUM, WD),
            Sampling(levels, options.hold, options.share),
        )
        own, whole = ordinary_step(net), ordinary_step(widest)
        things = {
            "ordinary": lambda: [own(x, y, 0, LR) for _ in range(8)],
            "slimmable": lambda: [step(x, y, next(count), LR) for _ in range(8)],
            "three of the widest": lambda: [whole(x, y, 0, LR) for _ in range(24)],
        }
        seconds = in_turns(things, repeats, n_warmup=1)
        for name, target in (("slimmable", 2.5), ("three of the widest", None)):
            label = "slimmable step" if target else "three steps of the widest network"
            ratio = spread(seconds[name] / seconds["ordinary"])
            rows.append(Row("slimmable", f"{label} / ordinary step", str(case), *ratio, target=target, more=False))
        details[str(case)] = {key: s / 8 for key, s in medians(seconds).items()}
        gc.collect()
    return rows, details


def solving(networks: Sequence[str], shape: Sequence[int], repeats: int = 3) -> Found:
    """Rows and details of exact widths under one bound, with 14 levels per group, including the tables of the cost."""
    rows, details = [], {}
    for network in networks:
        net, rng = from_gluoncv(network, shape, seed=0), np.random.default_rng(0)
        cost, levels = macs(net), OwsOptions().grid(net.widths, 1 if network == TINY.network else 8)
        gains = {name: np.cumsum(np.sort(rng.exponential(size=len(of)))[::-1]) for name, of in levels.items()}
        seconds, gaps = [], []
        for k in range(repeats):
            began = time.perf_counter()
            found = Solver(levels, cost).solve(gains, (0.2 + 0.2 * k) * cost(net.widths))
            seconds.append(time.perf_counter() - began)
            gaps.append(found.gap)
        how = {"unit": "s", "target": MOST_S.get(network), "more": False}
        setting = f"{network}, {len(levels)} groups, 14 levels each"
        rows.append(Row("solver", "exact widths for one bound", setting, *np.percentile(seconds, (50, 25, 75)), **how))
        details[network] = {"seconds": seconds, "gaps": gaps}
    return rows, details


def architectures(n: int, n_zero_shot: int) -> Found:
    """Rows and details of the two cheap questions of an architecture search, on one core.

    What do `n` architectures cost in latency and memory, and which of `n_zero_shot` is best without training? The space
    is that of configs/architecture_search/full.yaml, and the time to prepare its prices counts.
    """
    net = from_gluoncv("mobilenetv2_0.5", (3, 32, 32), 10, seed=0)
    options = SpaceOptions(widths={"*": (0.5, 0.75, 1.0, 1.25)}, blocks={"*": ("plain", "fused")}, drop=("*",))
    setting = "mobilenetv2_0.5, 32 px, widths, blocks, depth"
    model = latency.load(ROOT / "results" / "latency" / "mobilenetv2_0.5-32px-batch64.json")
    with threadpool_limits(1):
        began = time.perf_counter()
        space = Space(net, options, 8)
        costs = [space.price(of) for of in (model.cost, peak_memory)]
        prepared_s = time.perf_counter() - began
        levels = space.random(n, np.random.default_rng(0))
        seconds: List[float] = []
        for _ in range(5):
            began = time.perf_counter()
            prices = [cost(levels) for cost in costs]
            seconds.append(time.perf_counter() - began)
        few = levels[:10]
        began = time.perf_counter()
        slow = []
        for level in few:
            found = space.network(space.pattern(level))
            slow.append([of(found)(found.widths) for of in (model.cost, peak_memory)])
        each_s = (time.perf_counter() - began) / len(few)
        np.testing.assert_allclose(np.array(slow).T, [price[: len(few)] for price in prices], rtol=1e-9)
        began = time.perf_counter()
        data = SimpleNamespace(name="none")
        judged = Judged(space, data, "classification", 0, 64, "none", Path("."))
        limit = Limit("latency", (costs[0],), 0.45 * costs[0](space.levels(space.own)[None])[0], (1.0,), 0.9)
        asked = QUALITIES["trainability"](judged, Options())
        question = Question(space, asked, (limit,), n_zero_shot, np.random.default_rng(0))
        SOLVERS["evolution"](question, EvolutionOptions())
        zero_shot_s = time.perf_counter() - began
    priced = [60 * n / (prepared_s + s) for s in np.percentile(seconds, (50, 75, 25))]
    ratio = each_s / (np.median(seconds) / n)
    rows = [
        Row("architectures", f"{n:,} priced by latency and memory", setting, *priced, "a minute", 10_000),
        Row("architectures", "network made and priced / priced by tables", setting, ratio, ratio, ratio),
        Row("architectures", f"best of {n_zero_shot:,} by trainability, evolution", setting,
            *3 * (zero_shot_s,), "s", 120, more=False),
    ]  # fmt: skip
    details = {"prepared_s": prepared_s, "seconds": seconds, "each_s": each_s, "zero_shot_s": zero_shot_s}
    return rows, {**details, "asked": len(question.asked)}


# ---- the schedule ------------------------------------------------------------------------------------------


def random_data(case: Case, n_images: int) -> Dataset:
    """Random images and labels, plus a tenth of `n_images` for validation, on which the schedule evaluates networks."""
    rng, n = np.random.default_rng(0), n_images + max(1, n_images // 10)
    images = rng.integers(0, 256, (n,) + case.shape, np.uint8)
    labels = rng.integers(0, case.classes, n).astype(np.int32)
    train, held_out = (Split(images, labels, rows, *PIXELS) for rows in (np.arange(n_images), np.arange(n_images, n)))
    return Dataset("random", case.shape, tuple(map(str, range(case.classes))), train, held_out, held_out)


def schedules_of(case: Case, n_images: int, roundings: Sequence[int]) -> Found:
    """Rows and details of `schedule` with widths that are multiples of each of `roundings`."""
    found = {f"round_to_{n}": schedule(case, n_images, n) for n in roundings}
    return [row for row, _ in found.values()], {key: details for key, (_, details) in found.items()}


def schedule(case: Case, n_images: int, round_to: int) -> Tuple[Row, dict]:
    """Row and details of a whole GCP schedule, in epochs of GluonCV's ordinary step on the dense network.

    Everything between the dense and the pruned network counts: building blocks, checkpoints, statistics, evaluation on
    the validation images. The ordinary epoch is timed before and after; the spread is given by the ratios to either.
    """
    data, step, target = random_data(case, n_images), gluoncv_step(case, *batch(case)), 0.2
    # Random labels teach nothing, so the rates are too small to change weights; larger ones can end in NaN. The penalty
    # is relative to the rates, so scales shrink and channels are removed all the same.
    options = gcp_method.GcpOptions(iterations=4, lr=1e-6, recover_lr=1e-6)

    def epoch(number: int) -> None:
        for x, y, _ in data.train.batches(case.batch, seed=number):
            step(mx.nd.array(x, device()), mx.nd.array(y, device()))

    # An untrained network's running statistics do not match its activations; frozen, they would make it diverge.
    batches, ours = Batches(data.train, case.batch, seed=0), ordinary_step(case.built())
    fit(ours, batches, schedules.constant(0.01, batches.per_epoch))
    dense = ours.network()
    timed(step)  # builds the graph and allocates its memory, once for all epochs
    before, cost = timed(partial(epoch, 1)), macs(dense)
    budget = Budget(cost, cost(dense.widths), target, round_to)
    usual = Prune.model_construct()
    how = {"statistics_images": usual.statistics_images, "moved": usual.moved}
    problem = Problem(dense, budget, data, 0, case.batch, **how)
    with tempfile.TemporaryDirectory() as folder:
        run = SimpleNamespace(path=Path(folder), log=lambda event, **values: None)
        start = time.perf_counter()
        outcome = gcp_method.gcp(problem, options, run)
        mx.nd.waitall()
        seconds = time.perf_counter() - start
    after = timed(partial(epoch, 2))
    setting = (
        f"{case}, {n_images} images, T={options.iterations}, to {target:g} of the MACs, widths multiples of {round_to}"
    )
    ratios = 2 * seconds / (before + after), seconds / max(before, after), seconds / min(before, after)
    target_epochs = {8: 5.0, 16: 3.5}.get(round_to)
    row = Row("schedule", "GCP schedule / ordinary epoch", setting, *ratios, "epochs", target_epochs, more=False)
    return row, {
        "schedule_s": seconds,
        "epoch_before_s": before,
        "epoch_after_s": after,
        "cost_kept": [one["cost_kept"] for one in outcome.history],
        "macs_kept": cost(outcome.network.widths) / budget.original,
    }


# ---- describing --------------------------------------------------------------------------------------------


def describing(network: str, shape: Sequence[int], repeats: int = 3) -> Found:
    """Row and details of opening and describing a network, finding its groups and halving every one of them.

    In wall-clock seconds, without imports. The first repeat is the one reported, because that is what a command waits
    for.
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


# ---- selection ---------------------------------------------------------------------------------------------


def selection(network: str, shape: Sequence[int], repeats: int = 3) -> Found:
    """Rows and details of choosing channels for half of the MACs, without looking at images, in wall-clock seconds.

    Criteria that need only weights score all channels and rank them together; allocations are given scores.
    """
    net, rng = from_gluoncv(network, shape, seed=0), np.random.default_rng(0)
    cost = macs(net)
    problem = Problem(net, Budget(cost, cost(net.widths), 0.5), None, 0, 1)
    scores = {name: rng.exponential(size=n) for name, n in net.widths.items()}
    things: Dict[str, Run] = {}
    for name in CRITERIA:
        if not hasattr(CRITERIA[name], "n_images"):
            things[f"{name}, ranked together"] = partial(_chosen, problem, name)
    for name in ALLOCATIONS:
        things[f"scores given, {name}"] = partial(ALLOCATIONS[name], scores, problem.budget, 0.5 * cost(net.widths))
    rows, details = [], {}
    for name, thing in things.items():
        seconds = sorted(timed(thing) for _ in range(repeats))
        setting = f"{network}, {shape[1]} px, half of the MACs"
        how = {"unit": "s", "target": 10.0, "more": False}
        rows.append(Row("selection", f"selection: {name}", setting, *np.percentile(seconds, (50, 25, 75)), **how))
        details[name] = seconds
    return rows, details


def layerwise_selection(network: str, shape: Sequence[int], n_samples: int = 64) -> Found:
    """Rows and details of ThiNet and CP on all groups: seconds to choose and fit, without passes over the data.

    The inputs and target outputs of the layers that read a group are drawn at random, `n_samples` of each, which does
    not affect what is timed. Also the peak memory of the arrays that this takes in addition to the networks, and how
    long scikit-learn takes to follow CP's path on the widest group, relative to ours.
    """
    net, rng = from_gluoncv(network, shape, seed=0), np.random.default_rng(0)
    cost = macs(net)
    problem = Problem(net, Budget(cost, cost(net.widths), 0.5), None, 0, 1)
    half = uniform_widths(net.widths, problem.budget)
    rows, details, setting = [], {}, f"{network}, {shape[1]} px, half of the MACs, {len(half)} groups"
    widest: List[Tuple[layerwise.Contributions, int]] = []

    def by_lasso_kept(contributions: layerwise.Contributions, width: int) -> np.ndarray:
        if not widest or len(contributions.norms) > len(widest[0][0].norms):
            widest[:] = [(contributions, width)]
        return by_lasso(contributions, width)

    def cut(choose: Callable, traced: bool) -> Dict[str, float]:
        """Per group, what choosing and fitting takes: seconds or, if `traced`, MB, which takes longer."""
        small, keep, found = net, {g.name: np.arange(g.size) for g in net.groups}, {}
        for group, width in half.items():
            if traced:
                tracemalloc.start()
            seen = layerwise.readers_of(net, small, keep, group, 0)
            for sums in seen.sums:
                groups, n_in, n_out = sums.before.shape
                read = np.maximum(rng.standard_normal((groups, n_samples, n_in)), 0)
                said = read @ sums.before + 0.1 * rng.standard_normal((groups, n_samples, n_out))
                sums.add(*(each.swapaxes(0, 1).reshape(n_samples, -1) for each in (read, said)))
            start = time.perf_counter()
            small, chosen = layerwise.cut_group(problem, small, seen, width, choose)
            found[group] = time.perf_counter() - start
            if traced:
                found[group] = tracemalloc.get_traced_memory()[1] / 2**20
                tracemalloc.stop()
            keep[group] = keep[group][chosen]
        return found

    for name, choose in (("ThiNet", least_missed), ("CP", by_lasso_kept)):
        seconds, peaks_mb = cut(choose, False), cut(choose, True)
        total, peak_mb = sum(seconds.values()), max(peaks_mb.values())
        details[name] = {"seconds": seconds, "peaks_mb": peaks_mb}
        how = {"unit": "s", "target": 10.0, "more": False}
        rows.append(Row("layerwise", f"selection and least squares: {name}", setting, total, total, total, **how))
        rows.append(Row("layerwise", f"peak of arrays: {name}", setting, peak_mb, peak_mb, peak_mb, "MB"))
    contributions, width = widest[0]
    gram, wanted = of_norm_1(contributions)
    end = lasso(gram, wanted, width).penalty
    ours = timed(lambda: lasso(gram, wanted, width))
    theirs = timed(lambda: lars_path_gram(wanted, gram, n_samples=1, max_iter=10**5, alpha_min=end, method="lasso"))
    setting = f"{network}, its widest group, {width} of {len(wanted)} channels"
    ratio = theirs / ours
    rows.append(Row("layerwise", "scikit-learn's LASSO path / ours", setting, ratio, ratio, ratio))
    details["lasso_path_s"] = {"ours": ours, "scikit-learn": theirs}
    return rows, details


def _chosen(problem: Problem, criterion: str) -> None:
    chooser(problem, criterion, "global")(problem.budget.target * problem.budget.original)


# ---- borders ---------------------------------------------------------------------------------------------


def borders(network: str, sides: Sequence[int], n_images: int = 4) -> Found:
    """Rows and details of how far a network with half of its channels removed is from one with them silenced.

    The constant of a removed channel moves into the next running mean, which is exact except within a kernel's reach of
    zero-padded borders. This is the worst case: channels and norms drawn at random, shifts as large as scales, no
    recovery. Rows state the largest difference over `n_images`, in units of the largest output; the details also state
    the difference when the constants are dropped instead of moved.
    """
    rows, details = [], {}
    for side in sides:
        rng, net = np.random.default_rng(0), from_gluoncv(network, (3, side, side), seed=0)
        net = net.with_arrays(
            {
                k: DRAWN[end](rng, v.shape).astype(np.float32)
                for k, v in net.arrays.items()
                for end in ("gamma", "beta", "running_mean", "running_var")
                if k.endswith("_" + end)
            }
        )
        keep = {g.name: np.sort(rng.choice(g.size, g.size // 2, replace=False)) for g in net.groups}
        images = rng.standard_normal((n_images, 3, side, side)).astype(np.float32)
        silenced = silence(net, keep)
        expected = predict(silenced, images)
        without_shifts = {
            beta: np.where(np.isin(np.arange(g.size), keep[g.name]), net.arrays[beta], 0).astype(np.float32)
            for g in net.groups
            for beta in (net.norm_arrays(norm)[1] for norm in g.norms)
            if beta is not None
        }
        moved, dropped = (
            float(np.abs(predict(other, images) - expected).max() / np.abs(expected).max())
            for other in (shrink(net, keep), silenced.with_arrays(without_shifts))
        )
        details[str(side)] = {"constants_moved": moved, "constants_dropped": dropped}
        name, setting = "removed against silenced, half of the channels", f"{network}, {side} px"
        rows.append(Row("borders", name, setting, moved, moved, moved, "of the largest output"))
    return rows, details


# ---- loader -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Photos:
    """JPEGs to load: their number, their height and width and the input's side in pixels, and the batch size."""

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


def loader(cases: Sequence[Photos], repeats: int) -> Found:
    """Rows and details of our ImageNet training loader against `ImageRecordIter`: seconds of MXNet's pass over ours.

    Both use the same file, augmentation (GluonCV's recipe) and number of threads; each pass lasts from opening the
    iterator until its last batch is on the device.
    """
    rows, details, workers = [], {}, runtime.physical_cores()
    for case in cases:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "train.rec"
            prepare.write_records(path, photos(case), prepare.Encoding(None))
            records = Records(path)
            pictures = decode.Pictures(records, (3, case.side, case.side), workers)
            split = Split(pictures, records.labels, np.arange(case.n), *PIXELS)
            contents = [records.read(row) for row in range(case.n)]

            def our_pass() -> None:
                for x, _, _ in split.batches(case.batch, seed=0, augment="imagenet"):
                    mx.nd.array(x, device()).wait_to_read()

            def decoding() -> None:
                for _ in decode.in_order(lambda c: decode.decoded(c, "").shape, contents, workers, 8 * workers):
                    pass

            passes = {"ImageRecordIter": partial(plain_pass, path, case, workers), "ours": our_pass}
            seconds = in_turns({**passes, "decoding": decoding}, repeats, n_warmup=1)
        ratios, median = seconds["ImageRecordIter"] / seconds["ours"], medians(seconds)
        limit = median["ImageRecordIter"] / median["decoding"]
        name = "our ImageNet loader / ImageRecordIter"
        rows.append(Row("loader", name, str(case), *spread(ratios), target=case.target, limit=limit))
        details[str(case)] = {"images_per_second": {key: case.n / s for key, s in median.items()}, "threads": workers}
    return rows, details


def photos(case: Photos) -> prepare.Labelled:
    """JPEGs (quality 95) of random parts of scikit-learn's two photographs, scaled to the case's size."""
    from sklearn.datasets import load_sample_images

    originals, rng, contents = load_sample_images().images, np.random.default_rng(0), []
    for k in range(case.n):
        whole = originals[k % len(originals)][..., ::-1]
        height = int(rng.integers(whole.shape[0] // 2, whole.shape[0] + 1))
        width = min(whole.shape[1], round(height * case.width / case.height))
        top, left = rng.integers(0, whole.shape[0] - height + 1), rng.integers(0, whole.shape[1] - width + 1)
        part = np.ascontiguousarray(whole[top : top + height, left : left + width])
        part = cv2.resize(part, (case.width, case.height), interpolation=cv2.INTER_AREA)
        contents.append(cv2.imencode(".jpg", part, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes())
    source = SimpleNamespace(name=lambda row: f"image {row}", read=contents.__getitem__)
    return prepare.Labelled(source, [str(k) for k in range(case.n)], [k % 10 for k in range(case.n)])


def plain_pass(path: Path, case: Photos, workers: int) -> None:
    """One pass of MXNet's own iterator, set up as GluonCV does for ImageNet."""
    (mean, *_), (std, *_) = PIXELS
    batches = mx.io.ImageRecordIter(
        path_imgrec=str(path),
        path_imgidx=str(path.with_suffix(".idx")),
        preprocess_threads=workers,
        shuffle=True,
        batch_size=case.batch,
        data_shape=(3, case.side, case.side),
        **{f"mean_{channel}": mean for channel in "rgb"},
        **{f"std_{channel}": std for channel in "rgb"},
        rand_mirror=True,
        random_resized_crop=True,
        max_aspect_ratio=4 / 3,
        min_aspect_ratio=3 / 4,
        max_random_area=1,
        min_random_area=0.08,
        **dict.fromkeys(("brightness", "saturation", "contrast"), 0.4),
        pca_noise=0.1,
        verbose=False,
    )
    for one in batches:
        one.data[0].as_in_context(device()).wait_to_read()


# ---- memory ------------------------------------------------------------------------------------------------


def memory(cases: Sequence[Case]) -> Found:
    """Rows and details of peak memory: GCP's step over GluonCV's, each kind of step in a process of its own.

    There are two ratios for each case: for the whole processes, and for what the steps add to imports and the built
    network. The arrays from which a block was made are not kept, just as GluonCV's step keeps none;
    `gcp.train.loop.fit` does keep them.
    """
    rows, details, name = [], {}, "peak memory, GCP step / GluonCV step"
    for case in cases:
        peaks = {kind: json.loads(_in_own_process(case, kind, "print_peak", {})[-1]) for kind in ("gluoncv", "gcp")}
        theirs, ours = peaks["gluoncv"], peaks["gcp"]
        whole = ours["peak_mb"] / theirs["peak_mb"]
        added = (ours["peak_mb"] - ours["built_mb"]) / max(1e-9, theirs["peak_mb"] - theirs["built_mb"])
        rows += [
            Row("memory", f"{name}, whole process", str(case), whole, whole, whole, target=1.1, more=False),
            Row("memory", f"{name}, beyond imports and network", str(case), added, added, added),
        ]
        details[str(case)] = peaks
    return rows, details


def planner(networks: Mapping[str, int]) -> Found:
    """Rows of what MXNet's planner allocates for a prediction, over the peak of `cost.memory`, by network and side."""
    rows, details = [], {}
    for name, side in networks.items():
        planned, peak = planned_bytes(name, side)
        ratio = planned / peak
        setting = f"{name}, {side} px"
        rows.append(Row("planner", "memory that MXNet plans / the peak that we count", setting, *3 * (ratio,)))
        details[setting] = {"planned_bytes": planned, "peak_bytes": peak}
    return rows, details


def planned_bytes(name: str, side: int) -> Tuple[float, float]:
    """For one image: the bytes that MXNet's planner allocates, and our peak; both without weights.

    The planner reports whole megabytes, so the plan is made for a batch of about 200 MB; the image, which is not in the
    planner's pool, is added. Operators are not fused (oneDNN's subgraphs), because our count does not fuse them.
    """
    net = from_gluoncv(name, (3, side, side))
    peak, image = peak_memory(net)(net.widths), 4 * 3 * side * side
    batch = -(-200_000_000 // int(peak))
    case = Case(name, side, batch, net.n_classes)
    said = "\n".join(_in_own_process(case, "", "print_plan", {"MXNET_SUBGRAPH_BACKEND": "NONE"}))
    pool = 2**20 * (int(re.search(r"Total (\d+) MB allocated", said)[1]) + 1)
    return pool / batch + image, peak


def print_plan(case: Case, kind: str) -> None:
    """Plan a prediction of the case's network, and print MXNet's description of the plan."""
    from gcp.backend.blocks import to_symbol

    symbol = to_symbol(case.built())
    print(symbol.simple_bind(mx.cpu(), grad_req="null", data=(case.batch, *case.shape)).debug_str())


def _in_own_process(case: Case, kind: str, function: str, variables: Mapping[str, str]) -> List[str]:
    """The lines that a function of this module prints in a separate process, for a case and a kind of step."""
    code = f"from gcp import benchmark as b; b.{function}(b.{case!r}, {kind!r})"
    root = str(Path(__file__).resolve().parent.parent)
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path, **variables}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], env=environment, check=True, stdout=subprocess.PIPE, text=True
    )
    return done.stdout.splitlines()


def print_peak(case: Case, kind: str, n_steps: int = 3) -> None:
    """Take a step of the given kind a few times; print the memory when it was built and at its peak (MB) as JSON."""
    step = _step_of(case, kind)
    mx.nd.waitall()
    gc.collect()  # GluonCV's block is a reference cycle; a GCP run has none, as its dense network comes from a file
    built = _resident_mb("VmRSS")
    for _ in range(n_steps):
        timed(step)
    print(json.dumps({"built_mb": built, "peak_mb": _resident_mb("VmHWM")}))


def _resident_mb(key: str) -> float:
    """Resident memory in MB, now (VmRSS) or at its peak (VmHWM)."""
    # On Linux, a child's ru_maxrss starts from its parent's peak, even after exec; /proc starts afresh.
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    line = next(line for line in status.read_text().splitlines() if line.startswith(key + ":"))
    return int(line.split()[1]) / 1024

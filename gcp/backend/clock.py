"""Networks in, seconds out: one forward pass on a device, by the clock, networks in turn, noise stated.

Everything that a number of seconds depends on is a `Setup`; every figure is a median over repeats after the device
has finished, with its spread. Networks take turns (A B A B), so that a drift of the machine meets all alike.
"""

from __future__ import annotations

import contextlib
import gc
import math
import os
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Callable, Dict, List, Sequence, Tuple

import numpy as np

from gcp.backend import export
from gcp.backend.blocks import to_block
from gcp.backend.engine import mx
from gcp.errors import UserError
from gcp.graph.network import Network
from gcp.runtime import environment, n_threads

MAX_SPREAD = 0.1  # interquartile range over median; wider is noise that the reader should know of
MIN_SHARE = 0.9  # processor seconds per second that this process must get: passes can be slowed evenly, unspread
ATTEMPTS = 3  # times that a wide measurement is repeated before it is taken as it is
REFERENCE_AGE = 20  # passes of the reference; and not under a second
WARM_UP, WARM_UP_S = 3, 0.1  # passes and seconds: the first builds the graph, the next fill caches, threads settle
MIN_TIME_S = 0.15  # a fast network is repeated until this much has been measured
FAST_S = 0.05  # below it, whose weights the caches hold matters: a pass ahead of the timed one brings back its own


@dataclass(frozen=True)
class Setup:
    """What a latency stands on besides the network: two latencies of different setups cannot be compared."""

    runtime: str = "mxnet"
    device: str = "cpu"
    dtype: str = "float32"
    batch: int = 1
    threads: int = field(default_factory=n_threads)

    def __post_init__(self) -> None:
        """UserError: a runtime, device or type that is not there, with those that are."""
        if self.runtime not in RUNTIMES:
            raise UserError(f"unknown runtime '{self.runtime}'; there are {', '.join(RUNTIMES)}")
        if self.device not in devices():
            raise UserError(f"unknown device '{self.device}'; this machine has {', '.join(devices())} for MXNet")
        dtypes = RUNTIMES[self.runtime].dtypes(self.device)
        if not dtypes:
            raise UserError(f"runtime '{self.runtime}' does not run on '{self.device}', only on cpu")
        if self.dtype not in dtypes:
            raise UserError(
                f"runtime '{self.runtime}' on '{self.device}' does not compute in '{self.dtype}', but in "
                f"{', '.join(dtypes)}"
            )
        if self.batch < 1:
            raise UserError(f"batch {self.batch}: give 1 or more images")

    @property
    def cores(self) -> int:
        """Processor cores that a forward pass keeps busy; 0 on a GPU."""
        return self.threads if self.device == "cpu" else 0

    def as_json(self) -> dict:
        """Plain values, as records and file headers hold them."""
        return asdict(self)

    def __str__(self) -> str:
        return (
            f"{self.runtime} on {self.device}, {self.dtype}, batch {self.batch}, "
            f"{self.threads} thread{'s' * (self.threads != 1)}"
        )


def devices() -> List[str]:
    """Names of the devices that this MXNet can run on."""
    return ["cpu"] + [f"gpu({i})" for i in range(mx.context.num_gpus())]


def context(device: str) -> mx.Context:
    """MXNet's context of a device's name."""
    return mx.cpu() if device == "cpu" else mx.gpu(int(device[len("gpu(") : -1]))


# ---- runtimes: how one forward pass is made ------------------------------------------------------------------------


def _images(net: Network, batch: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(batch,) + tuple(net.input_shape)).astype(np.float32)


def forward(block, images: np.ndarray, device: str = "cpu", dtype: str = "float32") -> Callable[[], None]:
    """A function that runs an MXNet block once on these images, already on the device, and waits for it."""
    x = mx.nd.array(images, context(device), dtype=dtype)
    x.wait_to_read()
    return lambda: block(x).wait_to_read()


def _mxnet(net: Network, setup: Setup) -> Callable[[], None]:
    block = to_block(net, context(setup.device), trainable=set())
    if setup.dtype != "float32":
        block.cast(setup.dtype)
    return forward(block, _images(net, setup.batch), setup.device, setup.dtype)


def _mxnet_int8(net: Network, setup: Setup) -> Callable[[], None]:
    images = _images(net, setup.batch)
    return forward(export.quantized(net, [(images, None, len(images))]), images)


def _onnxruntime(net: Network, setup: Setup) -> Callable[[], None]:
    images = _images(net, setup.batch)
    with tempfile.TemporaryDirectory() as folder:  # the session keeps what it has read
        outputs = export.onnx_outputs(export.to_onnx(net, Path(folder) / "network.onnx"), setup.threads)
    return lambda: outputs(images)


@dataclass(frozen=True)
class Runtime:
    """How to get a function that makes one forward pass and waits for it; and in which types it can."""

    prepare: Callable[[Network, Setup], Callable[[], None]]
    dtypes: Callable[[str], Tuple[str, ...]]


RUNTIMES: Dict[str, Runtime] = {
    "mxnet": Runtime(_mxnet, lambda device: ("float32",) if device == "cpu" else ("float32", "float16")),
    "mxnet-int8": Runtime(_mxnet_int8, lambda device: ("int8",) if device == "cpu" else ()),
    "onnxruntime": Runtime(_onnxruntime, lambda device: ("float32",) if device == "cpu" else ()),
}


# ---- the clock -----------------------------------------------------------------------------------------------------


def measure(
    nets: Sequence[Network],
    setup: Setup,
    repeats: int = 10,
    max_spread: float = MAX_SPREAD,
    attempts: int = ATTEMPTS,
    warn: Callable[[str], None] = lambda text: None,
) -> List[dict]:
    """Latency of each network in this process: see `timed`. Keys as there, and `images_per_second`."""
    passes = [RUNTIMES[setup.runtime].prepare(net, setup) for net in nets]
    rows = timed(passes, repeats, max_spread, attempts, warn, setup.cores)
    return [{**row, "images_per_second": setup.batch / row["latency_s"]} for row in rows]


def timed(
    passes: Sequence[Callable[[], None]],
    repeats: int = 10,
    max_spread: float = MAX_SPREAD,
    attempts: int = ATTEMPTS,
    warn: Callable[[str], None] = lambda text: None,
    threads: int = 0,
) -> List[dict]:
    """Per function, in turns: `latency_s` (median), `spread` (interquartile range / median), `n`, `noisy`, `attempts`.

    At least `repeats` rounds, more where all of them are fast. A measurement whose spread is above `max_spread`, or
    during which other processes had cores that `threads` threads need, is repeated up to `attempts` times, and the
    calmest is taken; `noisy` says that it was still not calm. `threads` = 0: the processor does not matter.
    """
    for run in passes:
        began, n = time.perf_counter(), 0
        while n < WARM_UP or time.perf_counter() - began < WARM_UP_S:
            run()
            n += 1
    best: List[dict] = []
    for attempt in range(1, attempts + 1):
        before = _processor()
        rows = _rounds(passes, repeats)
        lost = _lost(before, _processor(), threads) if threads else 0.0
        rows = [{**row, "noise": max(row["spread"] / max_spread, lost / (1 - MIN_SHARE))} for row in rows]
        if not best or max(r["noise"] for r in rows) < max(r["noise"] for r in best):
            best = rows
        if max(row["noise"] for row in best) <= 1:
            break
        warn(
            f"the machine is busy or its clock unsteady: a spread of {100 * max(r['spread'] for r in rows):.0f} % of "
            f"the median, others took {100 * lost:.0f} % of a core; "
            + (f"measuring again ({attempt + 1} of {attempts})" if attempt < attempts else "recorded as noisy")
        )
    return [
        {
            "latency_s": row["latency_s"],
            "spread": row["spread"],
            "n": row["n"],
            "noisy": row["noise"] > 1,
            "attempts": attempt,
        }
        for row in best
    ]


def _processor() -> Tuple[float, float, float]:
    """Seconds by the clock, of this process on all cores, and of all processes (0 where the system does not tell)."""
    busy = 0.0
    with contextlib.suppress(OSError):
        user, nice, system, _, _, irq, softirq, *_ = map(int, Path("/proc/stat").read_text().split("\n")[0].split()[1:])
        busy = (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")
    return time.perf_counter(), time.process_time(), busy


def _lost(before: Tuple[float, float, float], after: Tuple[float, float, float], threads: int) -> float:
    """Cores that others took from `threads` threads of ours between two readings of `_processor`.

    Our process computes all the time, so less than one core means that it had to share; and others may use only the
    cores that our threads leave. The system's own housekeeping, and a clock of 10 ms, may
    come to 0.15 of a core.
    """
    wall, own, all_of_them = (b - a for a, b in zip(before, after))
    lost = max(0.0, 1 - own / wall)
    if len(os.sched_getaffinity(0)) == os.cpu_count():  # else the others may be on cores that are not ours at all
        spare = max(0, os.cpu_count() - threads)
        lost = max(lost, (all_of_them - own) / wall - spare - 0.15)
    return lost


def _rounds(passes: Sequence[Callable[[], None]], repeats: int) -> List[dict]:
    seconds: List[List[float]] = [[0.0] for _ in passes]  # the first round only says which are fast
    began = time.perf_counter()
    while len(seconds[0]) <= repeats or (
        time.perf_counter() - began < MIN_TIME_S * len(passes) and len(seconds[0]) < 20 * repeats
    ):
        for run, taken in zip(passes, seconds):
            if taken[-1] < FAST_S and len(passes) > 1:
                run()
            start = time.perf_counter()
            run()
            taken.append(time.perf_counter() - start)
    rows = []
    for _, *taken in seconds:
        low, median, high = np.percentile(taken, [25, 50, 75])
        rows.append({"latency_s": float(median), "spread": float((high - low) / median), "n": len(taken)})
    return rows


def throughputs(nets: Sequence[Network], batch: int, repeats: int) -> List[dict]:
    """Inference speed of each network in MXNet, in turns, as records hold it."""
    setup = Setup(device=devices()[1] if len(devices()) > 1 else "cpu", batch=batch)
    return [
        {
            "images_per_second": row["images_per_second"],
            "latency_s": row["latency_s"],
            "spread": row["spread"],
            "batch": batch,
            "dtype": setup.dtype,
            "device": setup.device,
            "threads": setup.threads,
        }
        for row in measure(nets, setup, repeats)
    ]


def against_reference(
    net: Network,
    setup: Setup,
    repeats: int = 7,
    max_spread: float = MAX_SPREAD,
    warn: Callable[[str], None] = lambda text: None,
) -> Callable[[Network], Tuple[dict, float]]:
    """A function that times one network after another: measurement, and latency of `net` at about that time.

    The reference is timed again whenever the last time is a second or `REFERENCE_AGE` of its passes ago: the speed of a
    machine drifts.
    """
    prepare = RUNTIMES[setup.runtime].prepare
    reference = prepare(net, setup)
    last = {"at": -math.inf, "latency_s": 0.0}

    def one(network: Network) -> Tuple[dict, float]:
        if time.monotonic() - last["at"] > max(1.0, REFERENCE_AGE * last["latency_s"]):
            last["latency_s"] = timed([reference], repeats, max_spread, warn=warn, threads=setup.cores)[0]["latency_s"]
            last["at"] = time.monotonic()
        row = timed([prepare(network, setup)], repeats, max_spread, warn=warn, threads=setup.cores)[0]
        gc.collect()  # a block is full of cycles, and holds its memory
        return row, last["latency_s"]

    return one


def hardware() -> dict:
    """Where a measurement was made: processor, software versions and date."""
    facts = environment()
    return {
        "cpu": facts["device"]["cpu"],
        "versions": facts["versions"],
        "date": facts["date"],
        "git_commit": facts["git_commit"],
    }

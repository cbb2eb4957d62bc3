"""Networks in, seconds out: the time of one forward pass on a device, with its noise.

Everything besides the network that a latency depends on is a `Setup`; every latency is a percentile over repeats, each
timed until the device has finished. Networks are timed alternately (A B A B), so that a drift in the machine's speed
affects all of them alike.

The latency of a network here and now is the median. Its latency relative to another network is taken from the passes
that nothing slowed down (`UNDISTURBED`): a core that is shared with others, by its host if not by its own system, loses
a quarter of its speed for seconds at a time, and a network of many small layers loses a different share of its speed
than one of a few large layers.
"""

from __future__ import annotations

import gc
import math
import os
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Callable, Dict, List, Optional, Sequence, Tuple

import numpy as np
import psutil

from gcp.backend import export
from gcp.backend.blocks import to_block
from gcp.backend.engine import gluon, mx
from gcp.errors import UserError
from gcp.graph.network import Network
from gcp.runtime import hardware, n_threads  # noqa: F401  (hardware: what a measurement was made on)

# A latency is the second of these percentiles of the passes, and its spread the difference between the other two.
MEDIAN, UNDISTURBED = (25, 50, 75), (5, 10, 25)
MAX_SPREAD = 0.1  # relative to the latency; a measurement with a larger spread is called noisy
MAX_LOST_CORES = 0.1  # cores that other processes may take from ours, which can slow all passes alike, without a spread
ATTEMPTS = 3  # times that a noisy measurement is made before it is accepted
WARM_UP, WARM_UP_S = 3, 0.1  # passes and seconds: the first builds the graph, the next fill caches, threads settle
MIN_TIME_S = 0.15  # a fast network is repeated until this much has been measured
MIN_RELATIVE_TIME_S = 0.4  # the same for passes of which some should be undisturbed
FAST_S = 0.05  # a pass shorter than this is timed after an untimed one, which brings its weights back into the caches


@dataclass(frozen=True)
class Setup:
    """Everything besides the network that a latency depends on: latencies of different setups cannot be compared."""

    runtime: str = "mxnet"
    device: str = "cpu"
    dtype: str = "float32"
    batch: int = 1
    threads: int = field(default_factory=n_threads)

    def __post_init__(self) -> None:
        """Raise UserError for a value that is not available here, naming those that are."""
        if self.runtime not in RUNTIMES:
            raise UserError(f"unknown runtime '{self.runtime}'; choose from {', '.join(RUNTIMES)}")
        if self.device not in devices():
            raise UserError(f"unknown device '{self.device}'; on this machine, MXNet can use {', '.join(devices())}")
        dtypes = RUNTIMES[self.runtime].dtypes(self.device)
        if not dtypes:
            raise UserError(f"runtime '{self.runtime}' does not run on '{self.device}', only on cpu")
        if self.dtype not in dtypes:
            raise UserError(
                f"runtime '{self.runtime}' on '{self.device}' does not compute in '{self.dtype}', only in "
                f"{', '.join(dtypes)}"
            )
        if self.batch < 1:
            raise UserError(f"batch {self.batch}: give 1 or more images")
        if self.threads != n_threads():
            raise UserError(f"a latency with {self.threads} threads was requested, but this process has {n_threads()}")

    @property
    def cores(self) -> int:
        """Processor cores that a forward pass keeps busy; 0 on a GPU."""
        return self.threads if self.device == "cpu" else 0

    def as_json(self) -> dict:
        """Plain values, as in records and file headers."""
        return asdict(self)

    def __str__(self) -> str:
        return (
            f"{self.runtime} on {self.device}, {self.dtype}, batch {self.batch}, "
            f"{self.threads} thread{'s' * (self.threads != 1)}"
        )


def devices() -> List[str]:
    """Names of the devices that this MXNet can run on."""
    return ["cpu"] + [f"gpu({i})" for i in range(mx.context.num_gpus())]


def default_device() -> str:
    """The first GPU if there is one, or else the CPU."""
    return devices()[:2][-1]


# ---- runtimes: how one forward pass is made --------------------------------------------------------------------------


def _images(net: Network, batch: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(batch, *net.input_shape)).astype(np.float32)


def forward(
    block: gluon.Block, images: np.ndarray, context: mx.Context = mx.cpu(), dtype: str = "float32"
) -> Callable[[], None]:
    """A function that runs an MXNet block once on these images, already on the device, and waits until it is done."""
    x = mx.nd.array(images, context, dtype=dtype)
    x.wait_to_read()
    return lambda: block(x).wait_to_read()


def _mxnet(net: Network, setup: Setup) -> Callable[[], None]:
    context = mx.cpu() if setup.device == "cpu" else mx.gpu(int(setup.device[len("gpu(") : -1]))
    block = to_block(net, context, trainable=set())
    if setup.dtype != "float32":
        block.cast(setup.dtype)
    return forward(block, _images(net, setup.batch), context, setup.dtype)


def _mxnet_int8(net: Network, setup: Setup) -> Callable[[], None]:
    images = _images(net, setup.batch)
    return forward(export.quantized(net, [(images, None, len(images))]), images)


def _onnxruntime(net: Network, setup: Setup) -> Callable[[], None]:
    images = _images(net, setup.batch)
    with tempfile.TemporaryDirectory() as folder:  # the session keeps the file's content in memory
        outputs = export.onnx_outputs(export.to_onnx(net, Path(folder) / "network.onnx"), setup.threads)
    return lambda: outputs(images)


@dataclass(frozen=True)
class Runtime:
    """How to get a function that runs one forward pass and waits for it, and which types it can compute in."""

    prepare: Callable[[Network, Setup], Callable[[], None]]
    dtypes: Callable[[str], Tuple[str, ...]]


RUNTIMES: Dict[str, Runtime] = {
    "mxnet": Runtime(_mxnet, lambda device: ("float32",) if device == "cpu" else ("float32", "float16")),
    "mxnet-int8": Runtime(_mxnet_int8, lambda device: ("int8",) if device == "cpu" else ()),
    "onnxruntime": Runtime(_onnxruntime, lambda device: ("float32",) if device == "cpu" else ()),
}


# ---- the clock -------------------------------------------------------------------------------------------------------


def measure(
    nets: Sequence[Network],
    setup: Setup,
    repeats: int = 10,
    attempts: int = ATTEMPTS,
    warn: Callable[[str], None] = lambda text: None,
) -> List[dict]:
    """Latency of each network, all timed alternately: the keys of `timed`, and `images_per_second`."""
    passes = [RUNTIMES[setup.runtime].prepare(net, setup) for net in nets]
    rows = timed(passes, repeats, MAX_SPREAD, attempts, warn, setup.cores)
    return [{**row, "images_per_second": setup.batch / row["latency_s"]} for row in rows]


def timed(
    passes: Sequence[Callable[[], None]],
    repeats: int = 10,
    max_spread: float = MAX_SPREAD,
    attempts: int = ATTEMPTS,
    warn: Callable[[str], None] = lambda text: None,
    threads: int = 0,
    percentiles: Tuple[float, float, float] = MEDIAN,
    min_time_s: Optional[float] = None,
) -> List[dict]:
    """For each function: `latency_s`, `spread`, `n`, `noisy`, `attempts`.

    The functions are called alternately, `repeats` times each, or more often (up to twenty times as often) until
    `min_time_s` seconds, by default `MIN_TIME_S`, have passed for each of them. Of the three `percentiles` of the
    passes, the second is the latency, and the difference between the other two, divided by the latency, is the spread:
    by default the median and the quartiles. The measurement is noisy if a spread is above `max_spread`, or if other
    processes used cores that the `threads` threads of this process need (0: other load on the CPU does not matter). It
    is then repeated, up to `attempts` times in all, and the least noisy measurement is returned.
    """
    for run in passes:
        began, n = time.perf_counter(), 0
        while n < WARM_UP or time.perf_counter() - began < WARM_UP_S:
            run()
            n += 1
    best, least = [], math.inf
    for attempt in range(1, attempts + 1):
        before = _processor_times()
        rows = _rounds(passes, repeats, percentiles, MIN_TIME_S if min_time_s is None else min_time_s)
        lost = _lost_cores(before, _processor_times(), threads) if threads else 0.0
        spread = max(row["spread"] for row in rows)
        noises = [max(row["spread"] / max_spread, lost / MAX_LOST_CORES) for row in rows]
        if not best or max(noises) < least:
            best, least = [{**row, "noisy": noise > 1} for row, noise in zip(rows, noises)], max(noises)
        if least <= 1:
            break
        warn(
            f"the machine is busy or its speed is unsteady: a spread of {100 * spread:.0f} % of the latency, and "
            f"other processes took {100 * lost:.0f} % of a core; "
            + (f"repeating ({attempt + 1} of {attempts})" if attempt < attempts else "recorded as noisy")
        )
    return [{**row, "attempts": attempt} for row in best]


def _rounds(
    passes: Sequence[Callable[[], None]], repeats: int, percentiles: Tuple[float, float, float], min_time_s: float
) -> List[dict]:
    seconds: List[List[float]] = [[0.0] for _ in passes]  # the first round only shows which are fast
    began = time.perf_counter()
    while len(seconds[0]) <= repeats or (
        time.perf_counter() - began < min_time_s * len(passes) and len(seconds[0]) < 20 * repeats
    ):
        for run, taken in zip(passes, seconds):
            if taken[-1] < FAST_S and len(passes) > 1:
                run()
            start = time.perf_counter()
            run()
            taken.append(time.perf_counter() - start)
    rows = []
    for _, *taken in seconds:
        low, latency, high = np.percentile(taken, percentiles)
        rows.append({"latency_s": float(latency), "spread": float((high - low) / latency), "n": len(taken)})
    return rows


def _processor_times() -> Tuple[float, float, float]:
    """Wall-clock seconds, the CPU seconds of this process on all cores, and the CPU seconds of all processes."""
    times = psutil.cpu_times()  # which kinds of time exist depends on the system
    busy = sum(getattr(times, kind, 0.0) for kind in ("user", "nice", "system", "irq", "softirq"))
    return time.perf_counter(), time.process_time(), busy


def _lost_cores(before: Tuple[float, float, float], after: Tuple[float, float, float], threads: int) -> float:
    """How many cores others took from our `threads` threads between two readings of `_processor_times`.

    Our process computes all the time, so if it got less than one core, it had to share; and others may use only the
    cores that our threads leave free. The system's own housekeeping, and its clock with a resolution of 10 ms, may
    account for 0.15 of a core.
    """
    wall, own, all_of_them = (b - a for a, b in zip(before, after))
    lost = max(0.0, 1 - own / wall)
    if len(os.sched_getaffinity(0)) == os.cpu_count():  # else others may run on cores that we cannot use at all
        spare = max(0, os.cpu_count() - threads)
        lost = max(lost, (all_of_them - own) / wall - spare - 0.15)
    return lost


def against_reference(
    net: Network,
    setup: Setup,
    repeats: int = 7,
    warn: Callable[[str], None] = lambda text: None,
    min_time_s: float = MIN_RELATIVE_TIME_S,
    attempts: int = ATTEMPTS,
) -> Callable[[Network], Tuple[dict, float]]:
    """A function that times a network in turns with `net`; returns the network's measurement and the latency of `net`.

    Both are taken from undisturbed passes.
    """
    prepare = RUNTIMES[setup.runtime].prepare
    reference = prepare(net, setup)

    def measured(network: Network) -> Tuple[dict, float]:
        passes, limits = [reference, prepare(network, setup)], (repeats, MAX_SPREAD, attempts)
        whole, row = timed(passes, *limits, warn, setup.cores, UNDISTURBED, min_time_s)
        gc.collect()  # a block contains reference cycles, which keep its memory
        return row, whole["latency_s"]

    return measured

"""The machine that a process runs on: threads and GPUs, set before MXNet is imported, and what records say about it."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Callable, Dict, Iterator, List, Sequence

import psutil

from gcp.errors import UserError
from gcp.storage import now

# MXNet, oneDNN and onnxruntime choose their kernels by these instruction sets, named here as the system names them.
INSTRUCTION_SETS = frozenset(
    "sse4_1 avx avx2 f16c fma avx512f avx512bw avx512dq avx512vl avx512_vnni avx_vnni avx512_bf16 avx512_fp16 "
    "amx_tile amx_int8 amx_bf16 asimd asimddp asimdhp sve i8mm bf16".split()
)


def physical_cores() -> int:
    """Number of physical cores that this process may run on (hyper-threads of one core count once)."""
    usable = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    cores = set()
    for cpu in usable:
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        try:
            cores.add(siblings.read_text())
        except OSError:  # not Linux, or hidden in this container: count every logical processor
            cores.add(str(cpu))
    return max(1, len(cores))


def n_threads(configured: int = 0, n_processes: int = 1) -> int:
    """The number of threads to compute with: `configured`, or else OMP_NUM_THREADS, or else one per physical core.

    In the last case, the physical cores are divided among `n_processes` processes on this machine.
    """
    if configured:
        return configured
    text = os.environ.get("OMP_NUM_THREADS", "")
    return int(text) if re.fullmatch("0*[1-9][0-9]{0,5}", text) else max(1, physical_cores() // n_processes)


def use_threads(configured: int = 0, n_processes: int = 1) -> None:
    """Make MXNet compute with `n_threads` threads. Raises RuntimeError if it was imported with another number."""
    n = str(n_threads(configured, n_processes))
    if "mxnet" in sys.modules and os.environ.get("OMP_NUM_THREADS") != n:
        raise RuntimeError(
            f"MXNet reads the number of threads when it is imported, which has already happened: {n} comes too late"
        )
    os.environ["OMP_NUM_THREADS"] = n


def use_gpu(gpus: Sequence[int], local_rank: int = 0) -> None:
    """Make MXNet see only one GPU, the one numbered `gpus[local_rank]`, or all of them if `gpus` is empty.

    If CUDA_VISIBLE_DEVICES is set, numbers count within it. Raises RuntimeError if MXNet has already been imported,
    which is too late, and UserError if CUDA_VISIBLE_DEVICES has no such GPU.
    """
    if gpus:
        if "mxnet" in sys.modules:
            raise RuntimeError("MXNet reads CUDA_VISIBLE_DEVICES when it is imported, which has already happened")
        visible = _visible_gpus()
        if "CUDA_VISIBLE_DEVICES" in os.environ and gpus[local_rank] >= len(visible):
            fix = f"use numbers up to {len(visible) - 1}" if visible else "unset it, or leave out gpus"
            raise UserError(
                f"gpus: there is no GPU {gpus[local_rank]} among CUDA_VISIBLE_DEVICES='{','.join(visible)}'; {fix}",
                key="gpu.absent",
            )
        os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")  # the numbers of nvidia-smi
        os.environ["CUDA_VISIBLE_DEVICES"] = visible[gpus[local_rank]] if visible else str(gpus[local_rank])


def _visible_gpus() -> List[str]:
    """The numbers or identifiers in CUDA_VISIBLE_DEVICES; none if it is not set, so that all GPUs are visible."""
    return [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]


# Where and with what a run was made: facts for its record


def environment(device: str = "cpu") -> dict:
    """git_commit, versions, device and date of this process for a record; `device` is where it computes.

    git_commit is None if the package does not come from a git checkout, and ends in "+dirty" if the package's files
    differ from that commit.
    """
    return {
        "git_commit": _git_commit(),
        "versions": {
            "python": platform.python_version(),
            "mxnet": _mxnet_version(),
            "gluoncv": importlib.metadata.version("gluoncv"),  # its __version__ differs
            "numpy": importlib.metadata.version("numpy"),
        },
        "device": {
            "name": device,
            "cpu": _processor()["name"],
            "cpu_model": _processor()["model"],
            "gpu": None if device == "cpu" else _gpu_name(int(device[len("gpu(") : -1])),
            "threads": n_threads(),
        },
        "date": now(),
    }


def hardware(device: str = "cpu") -> dict:
    """Where a latency was measured, as latency files state it: the processor, the GPU, versions, date and commit."""
    facts = environment(device)
    keys = ("cpu", "cpu_model", "gpu")
    return {**{key: facts["device"][key] for key in keys}, **{k: facts[k] for k in ("versions", "date", "git_commit")}}


def _git(*arguments: str) -> str | None:
    package = Path(__file__).resolve().parent
    try:
        done = subprocess.run(["git", "-C", str(package), *arguments], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):  # no git here
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _git_commit() -> str | None:
    # A package installed into an environment that lies inside some checkout does not come from that checkout.
    if _git("ls-files", "--error-unmatch", "--", Path(__file__).name) is None:
        return None
    commit = _git("rev-parse", "HEAD")
    return f"{commit}+dirty" if commit and _git("status", "--porcelain", "--", ".") else commit


def _mxnet_version() -> str | None:
    """The version of whichever build of MXNet is installed; the build for each CUDA version has a name of its own."""
    for name in ("mxnet", *(f"mxnet-cu{cuda}" for cuda in range(112, 118))):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(name)
    return None


@functools.lru_cache(maxsize=None)
def _processor() -> Dict[str, str]:
    """The processor's `name`, which many models can share ("AMD EPYC" in a virtual machine), and its `model`.

    The model distinguishes processors of the same name: vendor, family, model and stepping numbers, the number of
    cores, and the instruction sets by which kernels are chosen.
    """
    facts = {}
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0].splitlines():
            key, _, value = line.partition(":")
            facts[key.strip()] = value.strip()
    # The second name of each field is the one on ARM processors.
    names = {
        "vendor": ("vendor_id", "CPU implementer"),
        "family": ("cpu family", "CPU architecture"),
        "model": ("model", "CPU part"),
        "stepping": ("stepping", "CPU revision"),
    }
    numbers = [f"{what} {facts.get(first, facts.get(second, '?'))}" for what, (first, second) in names.items()]
    flags = set((facts.get("flags") or facts.get("Features") or "").split())
    cores = psutil.cpu_count(logical=False) or os.cpu_count()
    return {
        "name": facts.get("model name") or platform.processor() or platform.machine(),
        "model": ", ".join([*numbers, f"{cores} cores", "with " + " ".join(sorted(flags & INSTRUCTION_SETS))]),
    }


def _gpu_name(number: int) -> str | None:
    """The name of the GPU that this process counts as `number`; None if nvidia-smi does not report it."""
    visible = _visible_gpus()
    which = visible[number] if number < len(visible) else str(number)
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader", "-i", which]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout.strip() or None
    return None


@contextlib.contextmanager
def progress_bar(text: str, unit: str = "net") -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr; yields the function that moves it, given how many are done and how many there are."""
    from tqdm import tqdm

    with tqdm(desc=text, unit=unit, file=sys.stderr, mininterval=0.5 if sys.stderr.isatty() else 20) as bar:

        def progress(done: int, n: int) -> None:
            bar.total = n
            bar.update(done - bar.n)

        yield progress

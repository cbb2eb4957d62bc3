"""MXNet, imported once the number of threads is set, which it reads as it is imported. All others take it from here."""

import os
from functools import lru_cache
from pathlib import Path

from gcp import runtime

runtime.use_threads()
os.environ.setdefault("MXNET_SUBGRAPH_VERBOSE", "0")  # else each int8 calibration prints a line of MXNet's internals

import mxnet as mx  # noqa: E402
from mxnet import autograd, gluon  # noqa: E402

__all__ = ["autograd", "gluon", "has_avx512", "mx"]


@lru_cache(maxsize=None)
def has_avx512() -> bool:
    """Whether oneDNN's kernels use these instructions: the processor has them, and the user leaves them to it."""
    cpu, most = Path("/proc/cpuinfo"), os.environ.get("DNNL_MAX_CPU_ISA", "ALL").upper()
    return most.startswith(("ALL", "AVX512")) and cpu.exists() and "avx512f" in cpu.read_text()

"""MXNet, imported once the number of threads is set, which it reads as it is imported. All others take it from here."""

import ctypes
import os
from functools import lru_cache
from pathlib import Path

import numpy as np

from gcp import runtime

runtime.use_threads()
os.environ.setdefault("MXNET_SUBGRAPH_VERBOSE", "0")  # else each int8 calibration prints a line of MXNet's internals

import mxnet as mx  # noqa: E402
from mxnet import autograd, gluon  # noqa: E402

__all__ = ["autograd", "gluon", "has_avx512", "memory", "mx"]


@lru_cache(maxsize=None)
def has_avx512() -> bool:
    """Whether oneDNN's kernels use these instructions: the processor has them, and the user leaves them to it."""
    cpu, most = Path("/proc/cpuinfo"), os.environ.get("DNNL_MAX_CPU_ISA", "ALL").upper()
    return most.startswith(("ALL", "AVX512")) and cpu.exists() and "avx512f" in cpu.read_text()


def memory(array: "mx.nd.NDArray") -> np.ndarray:
    """A float32 array of the processor as numpy sees it: its memory, not a copy, of the same shape.

    The engine knows nothing of what is read or written there: wait for all that it does with the array before. It is
    valid as long as the array lives and no operator has written to it, which can move it elsewhere.
    """
    if array.context.device_type != "cpu" or array.dtype != np.float32 or array.stype != "default":
        raise ValueError(f"no float32 array in the processor's memory: {array.dtype}, {array.stype}, {array.context}")
    shape, at = array.shape, ctypes.c_void_p()
    # What oneDNN has left in blocks of channels is put into rows first, and waited for.
    mx.base.check_call(mx.base._LIB.MXNDArrayGetData(array.handle, ctypes.byref(at)))
    n = 4 * int(np.prod(shape, dtype=np.int64))
    return np.ndarray(shape, np.float32, (ctypes.c_char * n).from_address(at.value))

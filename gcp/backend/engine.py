"""MXNet, imported after the number of threads is set, which it reads at import. Other modules import it from here."""

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
    """Whether oneDNN's kernels use AVX-512: the processor has it, and DNNL_MAX_CPU_ISA does not rule it out."""
    cpu, most = Path("/proc/cpuinfo"), os.environ.get("DNNL_MAX_CPU_ISA", "ALL").upper()
    return most.startswith(("ALL", "AVX512")) and cpu.exists() and "avx512f" in cpu.read_text()


def memory(array: "mx.nd.NDArray") -> np.ndarray:
    """A float32 array on the CPU as numpy sees it: its memory, not a copy, in the same shape.

    MXNet's engine does not know what is read or written there, so first wait for everything that it still does with the
    array. The result is valid as long as the array lives and no operator has written to it, which can move it
    elsewhere. Raises ValueError for an array of another type or on another device.
    """
    if array.context.device_type != "cpu" or array.dtype != np.float32 or array.stype != "default":
        raise ValueError(f"not a float32 array in CPU memory: {array.dtype}, {array.stype}, {array.context}")
    shape, at = array.shape, ctypes.c_void_p()
    # This waits for the array, and first converts what oneDNN has left in blocks of channels to the plain layout.
    mx.base.check_call(mx.base._LIB.MXNDArrayGetData(array.handle, ctypes.byref(at)))
    n = 4 * int(np.prod(shape, dtype=np.int64))
    return np.ndarray(shape, np.float32, (ctypes.c_char * n).from_address(at.value))

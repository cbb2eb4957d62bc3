"""MXNet, imported after the number of threads is set, which it reads at import. Other modules import it from here."""

import ctypes
import math
import os
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any, Optional

import numpy as np

from gcp import runtime

runtime.use_threads()
os.environ.setdefault("MXNET_SUBGRAPH_VERBOSE", "0")  # else each int8 calibration prints a line of MXNet's internals

# MXNet has a deprecated class that is one of scikit-learn's where it finds that. Importing it, and pandas, which it
# imports in turn, took a sixth of the time in which a command starts.
_sklearn = sys.modules.get("sklearn")
sys.modules["sklearn"] = None
import mxnet as mx  # noqa: E402
from mxnet import autograd, gluon  # noqa: E402

del sys.modules["sklearn"]
if _sklearn is not None:
    sys.modules["sklearn"] = _sklearn

__all__ = ["autograd", "copied", "gluon", "has_avx512", "memory", "mx"]


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
    n = 4 * math.prod(shape)
    return np.ndarray(shape, np.float32, (ctypes.c_char * n).from_address(at.value))


def copied(value: np.ndarray, ctx: "Optional[mx.Context]" = None, dtype: Any = None) -> "mx.nd.NDArray":
    """A copy as an array of MXNet on `ctx`, by default the CPU, of the type `dtype`, by default the same one.

    As fast for small arrays as it can be: numpy writes float32 arrays on the CPU, since nothing else knows the new
    array. `mx.nd.array` would wait for MXNet's engine twice.
    """
    ctx, dtype = ctx or mx.cpu(), np.dtype(dtype or value.dtype)
    if ctx.device_type != "cpu" or dtype != np.float32 or not value.size or not value.shape:
        return mx.nd.array(value, ctx, dtype)
    array = mx.nd.empty(value.shape, ctx, dtype)
    memory(array)[...] = value
    return array

"""MXNet's parameter files, read without MXNet, which trusts every length in them, even one that takes up all memory."""

from __future__ import annotations

import os
import struct
from typing import Dict, List

import numpy as np

LIST, DENSE = 0x112, (0xF993FAC9, 0xF993FACA)  # the numbers that begin a list of arrays, and a dense array in it
KINDS = ("float32", "float64", "float16", "uint8", "int32", "int8", "int64", "bool")


def read_arrays(path: str | os.PathLike) -> Dict[str, np.ndarray]:
    """The arrays of a file by name.

    Raises ValueError if the file is not in MXNet 1's format, is truncated, or holds sparse arrays.
    """
    file = np.memmap(path, np.uint8, "r") if os.path.getsize(path) else np.zeros(0, np.uint8)
    at = 0

    def take(n: int) -> np.ndarray:
        nonlocal at
        if n > len(file) - at:
            raise ValueError(f"it is cut off after {len(file):,} bytes")
        at += n
        return file[at - n : at]

    def number(kind: str) -> int:
        return struct.unpack("<" + kind, take(struct.calcsize(kind)).tobytes())[0]

    if (number("Q"), number("Q")) != (LIST, 0):
        raise ValueError("it does not begin like one")
    arrays: List[np.ndarray] = []
    for _ in range(number("Q")):
        if number("I") not in DENSE or number("i") != 0:
            raise ValueError("it holds an array in an older or a sparse format")
        shape = [number("q") for _ in range(number("i"))]
        number("q")  # the device that the array was on
        kind = number("i")
        if not 0 <= kind < len(KINDS) or any(n < 0 for n in shape):
            raise ValueError("it holds an array of unknown type or invalid shape")
        size = int(np.prod([np.dtype(KINDS[kind]).itemsize, *shape], dtype=object))
        arrays.append(take(size).view(KINDS[kind]).reshape(shape).copy())
    names = [take(number("Q")).tobytes().decode() for _ in range(number("Q"))]
    if arrays and not names:
        raise ValueError("it holds arrays without names")
    if len(names) != len(arrays) or len(set(names)) < len(names) or at < len(file):
        raise ValueError("its arrays and their names do not match")
    return dict(zip(names, arrays))

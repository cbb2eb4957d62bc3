"""MXNet, imported once the number of threads is set, which it reads as it is imported. All others take it from here."""

import os

from gcp import runtime

runtime.use_threads()
os.environ.setdefault("MXNET_SUBGRAPH_VERBOSE", "0")  # else each int8 calibration prints a line of MXNet's internals

import mxnet as mx  # noqa: E402
from mxnet import autograd, gluon  # noqa: E402

__all__ = ["autograd", "gluon", "mx"]

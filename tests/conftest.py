"""Settings that must be there before a test imports mxnet or matplotlib."""

import os

# One thread, whatever the machine has: expected numbers depend on it, and several test processes share the cores.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("MPLBACKEND", "Agg")

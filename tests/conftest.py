"""Settings that must be there before a test imports mxnet or matplotlib."""
import os

# scripts/test.sh sets the physical cores; a bare pytest gets one thread, faster than MXNet's own default.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

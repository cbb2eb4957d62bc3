"""Settings that must be there before a test imports mxnet or matplotlib."""
from __future__ import annotations

import os

from gcp.config import physical_cores

# As scripts/test.sh does, for a bare pytest: MXNet reads it once, at import, and its default is half as fast.
os.environ.setdefault("OMP_NUM_THREADS", str(physical_cores()))
os.environ.setdefault("MPLBACKEND", "Agg")

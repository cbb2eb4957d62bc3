"""Settings that must be there before a test imports mxnet or matplotlib."""

from __future__ import annotations

import os

from gcp import runtime

# As scripts/test.sh does, for a bare pytest: MXNet reads it once, at import, and its default is half as fast.
runtime.use_threads()
os.environ.setdefault("MPLBACKEND", "Agg")

"""The bridge to MXNet; importing it sets the number of threads, which MXNet reads once."""

from gcp import runtime

runtime.use_threads()

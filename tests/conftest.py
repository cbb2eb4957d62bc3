"""Settings that must be there before a test imports mxnet or matplotlib."""

import gc
import os
import signal

# One thread, whatever the machine has: expected numbers depend on it, and several test processes share the cores.
os.environ["OMP_NUM_THREADS"] = "1"
# The instructions that every x86 processor since 2013 has, for the same reason: wider ones add up in another order.
os.environ["DNNL_MAX_CPU_ISA"] = "AVX2"
os.environ["OPENBLAS_CORETYPE"] = "Haswell"
os.environ.setdefault("MPLBACKEND", "Agg")
# A shell script's background jobs ignore Ctrl-C, what nohup starts ignores that its terminal is gone, and so would all
# that they start; tests send both. A handler, even one that does nothing, is not passed on.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, lambda *_: None)
# What is imported and collected stays until the end, and the garbage collector would look through it again and again: a
# fifth of the time of the fast tests. It waits until all is there, then leaves that alone.
gc.disable()


def pytest_collection_finish():
    """Collect garbage from here on, and only among what the tests make."""
    gc.freeze()
    gc.enable()

"""Where the runs of a sweep are computed: on this machine, by dask's workers, or by SLURM, behind one contract.

Scheduling, placement and what happens when a machine dies are the engines' own; here is what they are told. A task is
sent as plain data, and a worker runs it in a process under a guard: so the worker never loads MXNet, the threads are
the configuration's, and what ends the worker ends the run.
"""

from gcp.experiment.sweep import local, on_dask, on_slurm  # noqa: F401 (they register themselves)
from gcp.experiment.sweep.base import Began, Ended, Engine, Setup, Task, engine

__all__ = ["Began", "Ended", "Engine", "Setup", "Task", "engine"]

"""The engines that compute the runs of a sweep, behind one interface: this machine, dask's workers, or SLURM.

Scheduling, placement and recovery when a machine dies are left to dask and SLURM; this package gives them the tasks. A
task is sent as plain data, and a worker runs it in a separate process under a guard: so the worker never loads MXNet,
the number of threads is the configuration's, and whatever ends the worker ends the run.
"""

from gcp.experiment.sweep import local, on_dask, on_slurm  # noqa: F401 (they register themselves)
from gcp.experiment.sweep.base import Began, Ended, Engine, Setup, Task, engine

__all__ = ["Began", "Ended", "Engine", "Setup", "Task", "engine"]

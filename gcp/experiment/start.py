"""Run one experiment in this process, from its configuration to its record, and print its main numbers.

Its command line is `scripts/run.py`. Workers of a sweep may have only the installed package, which has no scripts: they
use `python -m gcp.experiment.start CONFIG`.
"""

from __future__ import annotations

import json
import sys
from typing import Sequence

from gcp import command as command_line
from gcp import errors, runtime
from gcp.experiment import config, source
from gcp.train import launch


def start(
    command: Sequence[str], path: str, sets: Sequence[str], overlays: Sequence[str], timed: bool, meant: str = ""
) -> None:
    """Run the experiment of a configuration file, measure its speed if `timed`, and print its main numbers.

    `command` is the command that started this process: with several GPUs it is started again, once per GPU. `meant` is
    the expected fingerprint of the configuration. UserError: the fingerprint differs, or the number of workers does not
    match.
    """
    cfg, job = config.load(path, sets, overlays), launch.job()
    if meant and cfg.fingerprint() != meant:
        raise errors.UserError(
            f"{cfg.name}: a file that this configuration names is not the same here as where the sweep was started; "
            "copy it here",
            key="sweep.fingerprint",
        )
    if job.world_size == 1 and cfg.n_workers == max(1, len(cfg.gpus)) > 1:  # one worker for each GPU of this machine
        sys.exit(launch.supervise(command, cfg.n_workers))
    if cfg.n_workers != job.world_size:
        if cfg.workers is not None or job.world_size == 1:
            raise errors.UserError(
                f"workers: {cfg.n_workers} requested, but {job.world_size} started; start as many as "
                "requested with scripts/launch.py (--workers times the number of --hosts)"
            )
        cfg = config.load(path, [*sets, f"workers={job.world_size}"], overlays)
    if cfg.gpus and len(cfg.gpus) != job.local_size:
        raise errors.UserError(
            f"gpus: {list(cfg.gpus)} take one worker each, but {job.local_size} are started on each "
            f"machine; give scripts/launch.py --workers {len(cfg.gpus)}"
        )
    runtime.use_threads(cfg.threads, job.local_size)
    runtime.use_gpu(cfg.gpus, job.local_rank)
    from gcp.experiment import measure, record  # these import MXNet, which reads the threads and GPUs as it loads
    from gcp.experiment import run as experiment_run

    done, speeds = experiment_run.run(cfg), None
    if job.rank:
        return
    if timed:
        speeds = measure.measure_speed(cfg).speeds
    final = done.stages.final
    print(
        json.dumps(
            {
                "top1": final.top1,
                "n_eval": final.n_eval,
                "macs_kept": done.macs_kept,
                "params_kept": done.params_kept,
                "images_per_second": speeds and speeds.throughput.final.images_per_second,
            }
        )
    )
    print(f"record: {record.run_path(cfg) / record.RECORD}")


def run(argv: list) -> None:
    """The command line of a sweep's workers."""
    parser = command_line.Parser(description=__doc__)
    parser.add_argument("config", help="a complete configuration as one YAML file")
    parser.add_argument("--output", help="the output folder, instead of the configuration's")
    parser.add_argument("--untimed", action="store_true", help="do not measure throughput")
    parser.add_argument("--fingerprint", default="", help="the expected fingerprint of the configuration")
    parser.add_argument("--source", help="the expected `source.fingerprint` of the package")
    args = parser.parse_args(argv)
    if args.source not in (None, source.fingerprint()):
        raise errors.UserError(
            f"{source.ROOT}: is not the version of the package that the sweep was started with; install the "
            "same one on all machines",
            key="sweep.version",
        )
    sets = [] if args.output is None else [f"output={json.dumps(args.output)}"]
    command = [sys.executable, "-m", "gcp.experiment.start", *argv]
    start(command, args.config, sets, (), not args.untimed, args.fingerprint)


if __name__ == "__main__":
    command_line.main(run)

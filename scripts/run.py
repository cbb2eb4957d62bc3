"""Run one experiment: CONFIG -> one run folder with log.jsonl, the networks and record.json. Run again to resume."""

import json
import sys

from gcp import command as command_line
from gcp import errors, runtime
from gcp.experiment import config
from gcp.train import launch


def run(argv: list) -> None:
    """Parse, run, print the record's path and its main numbers."""
    parser = command_line.Parser(description=__doc__)
    parser.add_argument("config", help="YAML file, see configs/")
    parser.add_argument(
        "--overlay", action="append", default=[], metavar="FILE", help="laid over CONFIG, e.g. configs/smoke.yaml"
    )
    parser.add_argument(
        "--set", action="extend", nargs="+", default=[], metavar="KEY=VALUE", help="e.g. prune.target=0.2"
    )
    parser.add_argument(
        "--untimed",
        action="store_true",
        help="leave throughput out; run again without this when nothing else runs, to fill it in",
    )
    args = parser.parse_args(argv)
    cfg, job = config.load(args.config, args.set, args.overlay), launch.job()
    if job.world_size == 1 and cfg.n_workers == max(1, len(cfg.gpus)) > 1:  # one worker for each GPU of this machine
        sys.exit(launch.supervise([__file__, *argv], cfg.n_workers))
    if cfg.n_workers != job.world_size:
        if cfg.workers is not None or job.world_size == 1:
            raise errors.UserError(
                f"workers: {cfg.n_workers} are asked for, and {job.world_size} started; start this with "
                "scripts/launch.py, its --workers times its --hosts as many"
            )
        cfg = config.load(args.config, [*args.set, f"workers={job.world_size}"], args.overlay)
    if cfg.gpus and len(cfg.gpus) != job.local_size:
        raise errors.UserError(
            f"gpus: {list(cfg.gpus)} take a worker each, and {job.local_size} are started on each "
            f"machine; give scripts/launch.py --workers {len(cfg.gpus)}"
        )
    runtime.use_threads(cfg.threads, job.local_size)
    runtime.use_gpu(cfg.gpus, job.local_rank)
    from gcp.experiment import measure, record  # import MXNet, which reads the threads and GPUs as it loads
    from gcp.experiment import run as experiment_run

    done, speeds = experiment_run.run(cfg), None
    if job.rank:
        return
    if not args.untimed:
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


if __name__ == "__main__":
    command_line.main(run)

"""Run every experiment of a folder of configs (or one config) at every seed, then write the report.

Finished runs are not run again, and a dense network is trained once for all runs that share it; run again to resume.
Throughput is measured at the end, one run after another, when nothing else is running. With --on, runs are computed on
other machines (see docs/scale.md). With --dry-run, nothing is run: what it would take is printed.
"""

import argparse
import os
import sys
from pathlib import Path

from gcp import command as command_line
from gcp import errors, runtime
from gcp.data import smoke
from gcp.experiment import config, reproduce, sweep
from gcp.train import guard

SCRIPTS = Path(__file__).resolve().parent


def run(argv: list) -> None:
    """Parse the arguments, check every config, run them, measure speeds, and write the report."""
    parser = command_line.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", help="a YAML file, or a folder of them (files named _* are only bases for others)")
    parser.add_argument(
        "--seeds", type=command_line.seeds, metavar="0,1,2", help="seeds to run each config at (default: its own)"
    )
    command_line.add_overlay(parser)
    parser.add_argument(
        "--jobs",
        type=command_line.whole(1, 256),
        help="with --on local: experiments that run at once, each with its own `threads` (default 1)",
    )
    parser.add_argument(
        "--on", default="local", metavar="ENGINE", help="where to run: local, dask://HOST:PORT or slurm (default local)"
    )
    parser.add_argument(
        "--collect",
        action="store_true",
        help="with --on dask://...: fetch finished runs from the workers, which share no folder with this machine",
    )
    parser.add_argument(
        "--cancel",
        action="store_true",
        help="with --on: end what an interrupted sweep of these configs left running or waiting",
    )
    parser.add_argument(
        "--report",
        help="folder for the tables and figures (default: OUTPUT/report); if the configurations have several outputs, "
        "it has a sub-folder for each",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="run nothing; print targets, costs, images and the time on this machine, without needing the data",
    )
    parser.add_argument("--no-benchmark", action="store_true", help="with --dry-run: do not time training steps")
    args = parser.parse_args(argv)
    if args.no_benchmark and not args.dry_run:
        raise errors.UserError("--no-benchmark only matters with --dry-run")
    # All are checked before the first is run: a mistake in the last one should not cost hours.
    cfgs = config.load_all(args.configs, args.set, args.seeds, args.overlay)
    for folder in smoke.draw_missing([getattr(cfg.data, "root", None) for _, _, cfg in cfgs]):
        print(f"drew {folder}", file=sys.stderr)
    if args.dry_run:
        print(dry_run([cfg for _, _, cfg in cfgs], not args.no_benchmark, args.overlay))
        return
    with sweep.engine(args.on, sweep.Setup(SCRIPTS / "run.py", args.jobs, args.collect)) as engine:
        if args.cancel:
            print(reproduce.cancel(cfgs, engine, args.overlay))
            return
        code = reproduce.reproduce(cfgs, engine, args.overlay)
    if code:
        sys.exit(code)
    outputs = sorted({cfg.output for _, _, cfg in cfgs})
    for output in outputs:
        own = [] if args.report is None else ["--output", report_folder(args.report, output, outputs)]
        code = guard.call([sys.executable, str(SCRIPTS / "report.py"), output, *own])
        if code:
            sys.exit(code)


def report_folder(folder: str, output: str, outputs: list) -> str:
    """The folder for the report of one of the outputs: named after what distinguishes the output's path from others."""
    shared = os.path.commonpath([os.path.abspath(each) for each in outputs])
    return os.path.normpath(os.path.join(folder, os.path.relpath(output, shared)))


def dry_run(cfgs: list, timed: bool, overlays: list) -> str:
    """What the experiments would take, as a Markdown table."""
    runtime.use_threads(cfgs[0].threads)
    from gcp.experiment import estimate  # imports MXNet, which reads the number of threads as it loads
    from gcp.report import tables

    if not timed:
        return tables.forecast(estimate.forecast(cfgs, overlays=overlays))
    watch = estimate.Stopwatch(lambda text: print(text, file=sys.stderr, flush=True))
    return tables.forecast(estimate.forecast(cfgs, watch, overlays), watch.measured)


if __name__ == "__main__":
    command_line.main(run)

"""Run every experiment of a folder of configs (or one config), each at every seed, then write the report.

Finished runs are not run again, a dense network is trained once for all that share it; run again to resume.
Throughput is measured at the end, one run after another, when nothing else is running. With --dry-run nothing is run:
what it would take is printed.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

from gcp import command as command_line
from gcp import errors, runtime
from gcp.experiment import config
from gcp.experiment import record as records

SCRIPTS = Path(__file__).resolve().parent


def run(argv: list) -> None:
    """Parse, check every config, run them, measure speed, report."""
    parser = command_line.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", help="a YAML file, or a folder of them (files that start with _ are bases only)")
    parser.add_argument("--seeds", type=command_line.seeds, metavar="0,1,2", help="default: each config's own seed")
    parser.add_argument("--set", action="extend", nargs="+", default=[], metavar="KEY=VALUE", help="for every config")
    parser.add_argument(
        "--jobs",
        type=command_line.positive(int),
        default=1,
        help="experiments at once, `threads` threads each (default 1)",
    )
    parser.add_argument("--report", help="folder of the tables and figures; default: OUTPUT/report")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="run nothing; print, without needing the data: targets, costs, images, time here",
    )
    parser.add_argument("--no-benchmark", action="store_true", help="with --dry-run: time no training steps")
    args = parser.parse_args(argv)
    if args.no_benchmark and not args.dry_run:
        raise errors.UserError("--no-benchmark only matters with --dry-run")
    # All are checked before the first is run: a mistake in the last one should not cost hours.
    cfgs = config.load_all(args.configs, args.set, args.seeds)
    if args.dry_run:
        print(dry_run([cfg for _, _, cfg in cfgs], not args.no_benchmark))
        return
    from gcp.data import smoke

    for folder in smoke.make_missing(cfg.data.root for _, _, cfg in cfgs):
        print(f"drew {folder}", file=sys.stderr)
    todo = [item for item in cfgs if not records.is_done(item[2])]
    print(f"{len(cfgs)} experiments, {len(cfgs) - len(todo)} done before", file=sys.stderr)
    in_parallel(dense_first(todo), args.jobs)
    for path, overrides, cfg in cfgs:
        if not records.is_timed(cfg):
            code = start(path, overrides, []).wait()
            if code:
                sys.exit(code)
    for output in sorted({cfg.output for _, _, cfg in cfgs}):
        command = [sys.executable, str(SCRIPTS / "report.py"), output]
        code = subprocess.run(command + (["--output", args.report] if args.report else [])).returncode
        if code:
            sys.exit(code)


def dry_run(cfgs: list, timed: bool) -> str:
    """What the experiments would take, as a Markdown table."""
    runtime.use_threads(cfgs[0].threads)
    from gcp.experiment import estimate  # imports MXNet, which reads the number of threads as it loads
    from gcp.report import estimate as report_estimate

    if not timed:
        return report_estimate.markdown(estimate.forecast(cfgs))
    watch = estimate.Stopwatch(lambda text: print(text, file=sys.stderr, flush=True))
    return report_estimate.markdown(estimate.forecast(cfgs, watch), watch.measured)


def dense_first(items: list) -> list:
    """One experiment of each dense network before all others, so that no job waits for another's dense network."""
    seen, first, rest = set(), [], []
    for item in items:
        key = (item[2].output, item[2].dense_fingerprint())
        (rest if key in seen else first).append(item)
        seen.add(key)
    return first + rest


def start(path: Path, overrides: list, extra: list, slot: int = 0) -> subprocess.Popen:
    """An experiment in a process of its own: its threads are its config's, and its memory is given back."""
    sets = [word for o in overrides for word in ("--set", o)]
    return subprocess.Popen(
        [sys.executable, str(SCRIPTS / "run.py"), str(path), *sets, *extra],
        stdout=subprocess.DEVNULL,
        env={**os.environ, "TQDM_POSITION": str(slot)},
    )


def in_parallel(items: list, n_jobs: int) -> None:
    """Run the experiments, `n_jobs` at a time; exits with the code of the first that fails, once the others ended."""
    waiting, running, n_done, began, failed = list(enumerate(items, 1)), {}, 0, time.monotonic(), 0
    while running or (waiting and not failed):
        for slot in range(n_jobs):
            if slot in running and running[slot].poll() is not None:
                code, n_done = running.pop(slot).returncode, n_done + 1
                failed = failed or code
            if slot not in running and waiting and not failed:
                number, (path, overrides, cfg) = waiting.pop(0)
                left = (time.monotonic() - began) / n_done * (len(items) - n_done) / 60 if n_done else None
                print(
                    f"[{number}/{len(items)}] {cfg.name} seed {cfg.seed}"
                    + ("" if left is None else f", about {left:.0f} min left in all"),
                    file=sys.stderr,
                    flush=True,
                )
                running[slot] = start(path, overrides, ["--untimed"], slot)
        time.sleep(0.05)
    if failed:
        sys.exit(failed)


if __name__ == "__main__":
    command_line.main(run)

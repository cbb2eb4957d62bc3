"""Run every experiment of a folder of configs (or one config), each at every seed, then write the report.

Finished runs are not run again, a dense network is trained once for all that share it; run again to resume.
"""
import argparse
import subprocess
import sys
from pathlib import Path

from gcp import config, records


def run(argv: list) -> None:
    """Parse, check every config, run them in turn, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", help="a YAML file, or a folder of them (files that start with _ are bases only)")
    parser.add_argument("--seeds", type=config.seeds, metavar="0,1,2", help="default: each config's own seed")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="for every config")
    parser.add_argument("--report", help="folder of the tables and figures; default: OUTPUT/report")
    args = parser.parse_args(argv)
    # All are checked before the first is run: a mistake in the last one should not cost hours.
    cfgs = config.load_all(args.configs, args.set, args.seeds)
    for number, (path, overrides, cfg) in enumerate(cfgs, 1):
        print(f"[{number}/{len(cfgs)}] {cfg.name} seed {cfg.seed}", file=sys.stderr, flush=True)
        if records.is_done(cfg):
            print("      done before", file=sys.stderr)
            continue
        # A process each: its threads are its config's, and its memory is given back.
        command = [sys.executable, str(Path(__file__).with_name("run.py")), str(path)]
        code = subprocess.run(command + [word for o in overrides for word in ("--set", o)],
                              stdout=subprocess.DEVNULL).returncode
        if code:
            sys.exit(code)
    for output in sorted({cfg.output for _, _, cfg in cfgs}):
        command = [sys.executable, str(Path(__file__).with_name("report.py")), output]
        code = subprocess.run(command + (["--output", args.report] if args.report else [])).returncode
        if code:
            sys.exit(code)


if __name__ == "__main__":
    config.main(run)

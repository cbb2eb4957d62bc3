"""Benchmark GCP's steps and schedule against GluonCV's ordinary training, as ratios on random data."""

import os
import sys
from pathlib import Path

from gcp import command as command_line
from gcp import errors, runtime


def run(argv: list) -> None:
    """Parse the arguments, measure, and print a Markdown table."""
    parser = command_line.Parser(description=__doc__)
    parser.add_argument(
        "--only",
        nargs="+",
        default=[],
        metavar="NAME",
        help="measure only some of resnet18-32, resnet50-64, resnet50-224, small-images, recipe, widths, schedule, "
        "describe, selection, layerwise, slimmable, solver, architectures, memory, planner, borders, loader",
    )
    parser.add_argument(
        "--repeats", type=command_line.whole(1, 10**5), default=11, help="rounds of steps; the median is reported"
    )
    parser.add_argument(
        "--json",
        metavar="FILE",
        help="write all results to this file, and the table beside it as .md; with --only, update only those results",
    )
    parser.add_argument("--quick", action="store_true", help="use a tiny network everywhere, to check that it runs")
    args = parser.parse_args(argv)
    runtime.use_threads(0)
    from gcp import benchmark, storage  # imports MXNet, which reads the number of threads as it loads

    path = Path(args.json) if args.json else None
    old = benchmark.read(path) if path is not None and args.only and os.path.lexists(path) else None
    here = runtime.environment()["device"]
    if old is not None and old.get("device") != here:
        raise errors.UserError(
            f"{path}: measured on another machine ({old.get('device')}) than this one ({here}), and ratios from two "
            "do not belong in one table; name another file, or measure everything again without --only",
            key="benchmark.machine",
        )
    told = {"file": sys.stderr, "flush": True}
    result = benchmark.run(args.only, args.repeats, args.quick, lambda name: print(f"measuring {name} ...", **told))
    if old is not None:
        result = benchmark.renewed(old, result)
    table = benchmark.table(result)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        storage.write_json(path, result)
        storage.write_text(path.with_suffix(".md"), table + "\n")
    print(table)


if __name__ == "__main__":
    command_line.main(run)

"""Redraw the paper's Figure 1 from the published data and, with --measure, time its networks on this machine."""

from __future__ import annotations

import argparse
import gc
import os
import sys
from pathlib import Path

from gcp import command as command_line
from gcp import errors, runtime
from gcp.report import figure1, tables

REFERENCE = Path(__file__).resolve().parents[1] / "results" / "reference"


def run(argv: list[str]) -> None:
    """Parse the arguments, measure if asked to, and draw."""
    parser = command_line.Parser(description=__doc__)
    parser.add_argument(
        "--measure",
        action="store_true",
        help="time the networks that DIR/measured.json does not hold yet; otherwise only draw what is there",
    )
    parser.add_argument(
        "--batch", type=command_line.batch, help="images per forward pass (default: as in the published data)"
    )
    parser.add_argument(
        "--threads", type=command_line.threads, help="CPU threads (default: OMP_NUM_THREADS, or one per physical core)"
    )
    parser.add_argument(
        "--repeats",
        type=command_line.whole(1, 10**5),
        help="minimum number of forward passes; the median is reported (default 5)",
    )
    parser.add_argument(
        "--only",
        nargs="+",
        metavar="NAME",
        help="published networks to time (default: PruneNets, their bases, ResNet-34, MobileNets)",
    )
    parser.add_argument(
        "--out", default="results/figure1", metavar="DIR", help="output folder (default: results/figure1)"
    )
    args = parser.parse_args(argv)
    idle = [f"--{key}" for key in ("batch", "threads", "repeats", "only") if getattr(args, key) is not None]
    if idle and not args.measure:
        raise errors.UserError(f"{', '.join(idle)}: only matters while networks are timed; add --measure")
    networks, path = figure1.published(REFERENCE), Path(args.out) / "measured.json"
    if args.measure:
        measured = measure(args, networks, path)
    else:
        measured = figure1.read(path) if os.path.lexists(path) else None
    with tables.writing(Path(args.out), "--out"):
        paths = figure1.write(networks, measured, Path(args.out))
    for table in paths:
        if table.suffix == ".md":
            print(table.read_text(encoding="utf-8"))
    for each in paths:
        print(each)


def measure(args: argparse.Namespace, networks, path: Path) -> dict:
    """Time the networks that are not in the file yet."""
    some = figure1.to_measure(networks, args.only or ())
    runtime.use_threads(args.threads or 0)
    from tqdm import tqdm

    from gcp.backend import clock  # imports MXNet, which reads the number of threads as it loads
    from gcp.backend.zoo import open_network
    from gcp.cost.analytic import macs, params
    from gcp.graph.surgery import resized

    setup = clock.Setup(batch=int(networks.batch.iloc[0]) if args.batch is None else args.batch)

    def warn(text: str) -> None:
        tqdm.write(f"warning: {text}", file=sys.stderr)

    # One network per call, not all alternately: a deep network's activations for a batch fill much of a small memory.
    def time_one(name: str) -> dict:
        net = open_network(name, figure1.INPUT)
        net = resized(net, net.widths)
        (row,) = clock.measure([net], setup, args.repeats or 5, warn=warn)
        gc.collect()  # blocks contain reference cycles, which keep their memory alive
        return {**row, "macs": int(macs(net)(net.widths)), "params": int(params(net)(net.widths))}

    path.parent.mkdir(parents=True, exist_ok=True)
    # Progress counts work, not networks: the slowest takes as long as many of the others together.
    look = {"bar_format": "{desc}: {percentage:3.0f}%|{bar:20}| {elapsed}<{remaining}", "smoothing": 0}
    with tqdm(total=1.0, file=sys.stderr, mininterval=0.5 if sys.stderr.isatty() else 20, **look) as bar:

        def progress(done: float, name: str) -> None:
            bar.set_description_str(f"{setup}: {name}" if name else str(setup), refresh=False)
            bar.update(done - bar.n)
            bar.refresh()

        return figure1.measure(some, path, setup.as_json(), clock.hardware(), time_one, progress)


if __name__ == "__main__":
    command_line.main(run)

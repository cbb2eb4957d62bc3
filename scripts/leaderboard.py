"""Compare methods: tables and figures of the records below folders, such as those in results/comparison.

For runs with several seeds and targets: accuracies, paired differences from a baseline, mean ranks, and costs.
"""

from __future__ import annotations

from pathlib import Path

from gcp import command as command_line
from gcp import runtime
from gcp.errors import UserError
from gcp.report import frame, leaderboard, tables


def run(argv: list[str]) -> None:
    """Parse the arguments, read the records, write tables and figures."""
    parser = command_line.Parser(description=__doc__)
    parser.add_argument(
        "results", nargs="+", metavar="RESULTS", help="a folder with finished runs at any depth; one folder per network"
    )
    parser.add_argument("--baseline", default="uniform-l1", help="the configuration that others are compared with")
    parser.add_argument(
        "--time",
        type=command_line.threads,
        metavar="THREADS",
        help="before reporting, time the untimed networks of runs with this many threads on this machine",
    )
    parser.add_argument(
        "--latency-model",
        metavar="MODEL",
        help="a model written by `latency.py fit`, to show where in the networks time is spent, by output size",
    )
    parser.add_argument("--output", metavar="DIR", help="folder for tables and figures (default: RESULTS/report)")
    arguments = parser.parse_args(argv)
    if len(arguments.results) > 1 and arguments.output is None:
        raise UserError("--output DIR: is needed for several folders; give the folder for their tables")
    output = Path(arguments.output or Path(arguments.results[0]) / "report")
    if arguments.time is not None:
        runtime.use_threads(arguments.time)
        from gcp.experiment import measure

        with runtime.progress_bar("timed", "run") as progress:
            for folder in arguments.results:
                measure.time_records(folder, progress)
    runs = frame.loaded(arguments.results)
    predicted = {}
    if arguments.latency_model is not None:
        from gcp.cost import latency
        from gcp.experiment import measure

        predicted = measure.predicted(runs, latency.load(Path(arguments.latency_model)))
    with tables.writing(output, "--output"):
        paths = leaderboard.write(runs, output, arguments.baseline, predicted)
    for path in paths:
        if path.name.endswith("_accuracy.md"):
            print(path.read_text(encoding="utf-8"))
    for path in paths:
        print(path)


if __name__ == "__main__":
    command_line.main(run)

"""Tables and figures of the records below a results folder: `python scripts/report.py results/demo`.

Records of the paper's experiments (configs/imagenet, configs/caltech256, also small ones) also give the paper's tables.
"""

from __future__ import annotations

from pathlib import Path

from gcp import command as command_line
from gcp.experiment import record as records
from gcp.report import figures, frame, paper, tables

REFERENCE = Path(__file__).resolve().parents[1] / "results" / "reference"


def run(argv: list[str]) -> None:
    parser = command_line.Parser(description=__doc__)
    parser.add_argument("results", metavar="RESULTS", help="folder that holds finished runs, at any depth")
    parser.add_argument("--output", metavar="DIR", help="where the tables and figures go (default: RESULTS/report)")
    parser.add_argument(
        "--paper", action="store_true", help="all of the paper's tables 1 to 6, those without a record too"
    )
    arguments = parser.parse_args(argv)
    output = Path(arguments.output or Path(arguments.results) / "report")
    runs = records.load_records(arguments.results)
    with tables.writing(output, "--output"):
        table = frame.frame(runs)
        paths = tables.write(table, output) + figures.write(table, output)
        paths += paper.write(runs, REFERENCE, output, arguments.paper)
    for path in paths:
        if path.suffix == ".md" and path.stem not in ("table", "comparison"):  # too wide for a terminal
            print(path.read_text(encoding="utf-8"))
    for path in paths:
        print(path)


if __name__ == "__main__":
    command_line.main(run)

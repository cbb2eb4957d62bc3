"""Tables and figures of the records below a results folder: `python scripts/report.py results/demo`.

Records of the paper's experiments (configs/imagenet, configs/caltech256, also small ones) also give the paper's tables.
"""

from __future__ import annotations

from pathlib import Path

from gcp import command as command_line
from gcp.errors import UserError
from gcp.experiment import record as records
from gcp.report import figures, frame, paper, search, tables, width_search

REFERENCE = Path(__file__).resolve().parents[1] / "results" / "reference"


def run(argv: list[str]) -> None:
    parser = command_line.Parser(description=__doc__)
    parser.add_argument("results", metavar="RESULTS", help="folder that holds finished runs, at any depth")
    parser.add_argument(
        "--output",
        metavar="DIR",
        help="where the tables and figures go (default: RESULTS/report, or RESULTS/report_validation)",
    )
    parser.add_argument(
        "--paper", action="store_true", help="all of the paper's tables 1 to 6, those without a record too"
    )
    parser.add_argument(
        "--validation", action="store_true", help="accuracies on the validation images, which settings are chosen by"
    )
    arguments = parser.parse_args(argv)
    if arguments.paper and arguments.validation:
        raise UserError("--paper and --validation exclude each other: the paper's tables are of test images")
    images = "validation" if arguments.validation else "test"
    output = Path(arguments.output or Path(arguments.results) / ("report" if images == "test" else "report_validation"))
    runs = records.load_records(arguments.results)
    table = frame.frame(runs, images)
    with tables.writing(output, "--output"):
        paths = tables.write(table, output) + figures.write(table, output) + search.write(runs, table, output)
        paths += width_search.write(runs, output)
        if images == "test":
            paths += paper.write(runs, REFERENCE, output, arguments.paper)
    for path in paths:
        if path.suffix == ".md" and path.stem not in ("table", "comparison"):  # too wide for a terminal
            print(path.read_text(encoding="utf-8"))
    for path in paths:
        print(path)


if __name__ == "__main__":
    command_line.main(run)

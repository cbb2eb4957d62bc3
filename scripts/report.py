"""Write tables and figures of the records below a results folder: `python scripts/report.py results/demo`.

Records of the paper's experiments (configs/imagenet, configs/caltech256, also small versions) also give the paper's
tables. --html writes everything as one page for a browser; --watch serves such a page, live while experiments run.
"""

from __future__ import annotations

import sys
from pathlib import Path

from gcp import command as command_line
from gcp import storage
from gcp.errors import UserError
from gcp.report import figures, frame, live, page, paper, search, tables, width_search

REFERENCE = Path(__file__).resolve().parents[1] / "results" / "reference"


def run(argv: list[str]) -> None:
    parser = command_line.Parser(description=__doc__)
    parser.add_argument("results", metavar="RESULTS", help="folder with finished runs at any depth")
    parser.add_argument(
        "--output",
        metavar="DIR",
        help="folder for the tables and figures (default: RESULTS/report, or RESULTS/report_validation)",
    )
    parser.add_argument(
        "--paper", action="store_true", help="all of the paper's tables 1 to 6, including those without a record"
    )
    parser.add_argument(
        "--validation", action="store_true", help="accuracies on the validation images, by which settings are chosen"
    )
    parser.add_argument("--html", metavar="PAGE", help="write one self-contained page instead of tables")
    parser.add_argument(
        "--watch", action="store_true", help="serve that page on this machine, updated while runs continue"
    )
    parser.add_argument(
        "--port", type=command_line.whole(0, 65535), help="port of --watch (default: 8765; 0: any free one)"
    )
    arguments = parser.parse_args(argv)
    if arguments.html or arguments.watch:
        others = [word for word in ("output", "paper", "validation") if getattr(arguments, word)]
        if arguments.html and arguments.watch or others:
            raise UserError("--html and --watch cannot be combined with each other, --output, --paper or --validation")
        if arguments.html:
            write_page(Path(arguments.results), Path(arguments.html))
        else:
            live.serve(Path(arguments.results), REFERENCE, 8765 if arguments.port is None else arguments.port)
        return
    if arguments.port is not None:
        raise UserError("--port only matters with --watch")
    if arguments.paper and arguments.validation:
        raise UserError("--paper and --validation exclude each other: the paper's tables are on test images")
    images = "validation" if arguments.validation else "test"
    output = Path(arguments.output or Path(arguments.results) / ("report" if images == "test" else "report_validation"))
    runs = frame.loaded([arguments.results])
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


def write_page(folder: Path, path: Path) -> None:
    """Write one HTML file of all records below a folder; warnings on stderr name those that cannot be read."""
    data = page.contents(folder, REFERENCE)
    for problem in data["problems"]:
        print(f"warning: {problem}", file=sys.stderr)
    if not any(row["layer"] == "pruned" or row["layer"] == "dense" for row in data["rows"]):
        raise UserError(f"{folder}: holds no record that can be read; give a folder with a finished run")
    with tables.writing(path.parent, "--html"):
        storage.write_text(path, page.page(data))
    print(f"{path}: {page.summary(data)}")


if __name__ == "__main__":
    command_line.main(run)

"""Tables and figures of the records below a results folder: `python scripts/report.py results/demo`."""
from __future__ import annotations

from gcp import config, report


def run(argv: list[str]) -> None:
    parser = config.Parser(description=__doc__)
    parser.add_argument("results", metavar="RESULTS", help="folder that holds finished runs, at any depth")
    parser.add_argument(
        "--output", metavar="DIR", help="where the tables and figures go (default: RESULTS/report)"
    )
    parser.add_argument("--embed", metavar="FILE", help="Markdown document whose embedded tables to bring up to date")
    arguments = parser.parse_args(argv)
    paths = report.write(arguments.results, arguments.output)
    for path in paths:
        if path.suffix == ".md":
            print(path.read_text(encoding="utf-8"))
    for path in paths:
        print(path)
    if arguments.embed:
        report.embed(arguments.embed)


if __name__ == "__main__":
    config.main(run)

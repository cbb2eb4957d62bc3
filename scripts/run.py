"""Run one experiment: CONFIG -> one run folder with log.jsonl, the networks and record.json. Run again to resume."""

from gcp import command as command_line
from gcp.experiment import start


def run(argv: list) -> None:
    """Parse, run, print the record's path and its main numbers."""
    parser = command_line.Parser(description=__doc__)
    parser.add_argument("config", help="YAML file, see configs/")
    parser.add_argument(
        "--overlay", action="append", default=[], metavar="FILE", help="laid over CONFIG, e.g. configs/smoke.yaml"
    )
    parser.add_argument(
        "--set", action="extend", nargs="+", default=[], metavar="KEY=VALUE", help="e.g. prune.target=0.2"
    )
    parser.add_argument(
        "--untimed",
        action="store_true",
        help="leave throughput out; run again without this when nothing else runs, to fill it in",
    )
    args = parser.parse_args(argv)
    start.start([__file__, *argv], args.config, args.set, args.overlay, not args.untimed)


if __name__ == "__main__":
    command_line.main(run)

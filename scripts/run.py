"""Run one experiment: CONFIG -> one run folder with log.jsonl, the networks and record.json. Run again to resume."""

from gcp import command as command_line
from gcp.experiment import start


def run(argv: list) -> None:
    """Parse the arguments, run, print the record's path and its main numbers."""
    parser = command_line.Parser(description=__doc__)
    parser.add_argument("config", help="a YAML file, such as those in configs/")
    parser.add_argument(
        "--overlay",
        action="append",
        default=[],
        metavar="FILE",
        help="a YAML file laid over the config, e.g. configs/smoke.yaml",
    )
    parser.add_argument(
        "--set",
        action="extend",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="change single keys, e.g. prune.target=0.2",
    )
    parser.add_argument(
        "--untimed",
        action="store_true",
        help="do not measure throughput; to add it, run again without this option when nothing else is running",
    )
    args = parser.parse_args(argv)
    start.start([__file__, *argv], args.config, args.set, args.overlay, not args.untimed)


if __name__ == "__main__":
    command_line.main(run)

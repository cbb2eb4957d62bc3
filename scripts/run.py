"""Run one experiment: CONFIG -> one run folder with log.jsonl, the networks and record.json. Run again to resume."""

from gcp import command as command_line
from gcp.experiment import start


def run(argv: list) -> None:
    """Parse the arguments, run, print the record's path and its main numbers."""
    parser = command_line.Parser(description=__doc__)
    parser.add_argument("config", help="a YAML file, such as those in configs/")
    command_line.add_overlay(parser)
    parser.add_argument(
        "--untimed",
        action="store_true",
        help="do not measure throughput; to add it, run again without this option when nothing else is running",
    )
    args = parser.parse_args(argv)
    start.start([__file__, *argv], args.config, args.set, args.overlay, not args.untimed)


if __name__ == "__main__":
    command_line.main(run)

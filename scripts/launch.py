"""Run a script as several workers: scripts/launch.py --workers 2 -- scripts/run.py CONFIG. Run again to resume."""

import sys

from gcp import command as command_line
from gcp.train import launch


def run(argv: list) -> None:
    """Parse the arguments, start and watch the workers, and exit with the exit code of the job."""
    parser = command_line.Parser(description=__doc__)
    parser.add_argument(
        "--workers",
        type=command_line.whole(1, 1024),
        default=1,
        help="number of workers on this machine, or on each of the hosts (default 1)",
    )
    parser.add_argument("--hosts", default="", metavar="a,b", help="machines that ssh reaches without a password")
    parser.add_argument("--ssh", default=launch.SSH, help="ssh command (default: %(default)s)")
    parser.add_argument(
        "--restarts",
        type=command_line.whole(0, 1000),
        default=3,
        help="how many times a failed job is restarted from its last checkpoint (default 3)",
    )
    parser.add_argument(
        "--timeout",
        type=command_line.positive(float, 10**7),
        metavar="SECONDS",
        help="also restart when worker 0 has printed nothing for this long",
    )
    parser.add_argument("command", nargs="+", help="after --: a script of this project and its arguments")
    args = parser.parse_args(argv)
    hosts = [host.strip() for host in args.hosts.split(",") if host.strip()]
    sys.exit(launch.supervise(args.command, args.workers, hosts, args.ssh, args.restarts, args.timeout))


if __name__ == "__main__":
    command_line.main(run)

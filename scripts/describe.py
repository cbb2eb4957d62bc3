"""Describe a network: parameters, multiply-accumulates, channel groups and the cost of one channel of each."""

import json
import sys
import warnings

from gcp import command as command_line
from gcp.errors import UserError


def run(argv: list) -> None:
    """Parse the arguments, open the network, and print its description."""
    parser = command_line.Parser(description=__doc__)
    command_line.add_network(parser)
    parser.add_argument("--strict", action="store_true", help="treat unknown operators as errors")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    from gcp.backend.zoo import open_network
    from gcp.cost.analytic import describe

    net = open_network(args.network, args.input, args.classes)
    with warnings.catch_warnings(record=True) as unknown:
        warnings.simplefilter("always")
        facts = describe(net)
    for warning in unknown:
        if args.strict:
            raise UserError(f"{warning.message} (--strict)")
        print(f"warning: {warning.message}", file=sys.stderr)
    if args.json:
        print(json.dumps(facts, indent=1))
        return
    print(
        f"{facts['name']}  input {'x'.join(map(str, facts['input']))}  {facts['params']:,} params "
        f"(+ {facts['running_statistics']:,} running statistics)  {facts['macs']:,} MACs"
    )
    head = ("group", "size", "MACs/channel", "params/channel", "producers -> consumers")
    rows = [
        (
            g["name"],
            str(g["size"]),
            f"{g['macs_per_channel']:,}",
            f"{g['params_per_channel']:,}",
            f"{' '.join(g['producers'])} -> {' '.join(g['consumers'])}",
        )
        for g in facts["groups"]
    ]
    w = [max(len(row[k]) for row in [head] + rows) for k in range(4)]
    for row in [head] + rows:
        print(f"{row[0]:<{w[0]}}  {row[1]:>{w[1]}}  {row[2]:>{w[2]}}  {row[3]:>{w[3]}}  {row[4]}")


if __name__ == "__main__":
    command_line.main(run)

"""Prune every network of the zoo at random, and compare removing channels with silencing them, family by family.

Per family: how many networks can be pruned, the mean share of their channels that can be removed, and the largest
output difference (over the largest output) between silencing and removing a random 30 % of every group.
"""

import sys
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Dict

from gcp import command as command_line
from gcp.errors import UserError
from gcp.storage import read_json, write_json, write_text


def run(argv: list) -> None:
    """Parse the arguments, try the networks, print and write the table."""
    parser = command_line.Parser(description=__doc__)
    parser.add_argument("--family", help="try only this family, such as resnet; the table is then not written")
    parser.add_argument(
        "--compare",
        type=command_line.natural,
        metavar="N",
        help="compare the N smallest of each family (default: all; 0: none)",
    )
    parser.add_argument("--results", type=Path, help="file for the results; networks in it are not tried again")
    parser.add_argument("--write", type=Path, help="file for the table, which docs/networks.md embeds")
    args = parser.parse_args(argv)
    from gcp.backend import zoo
    from gcp.experiment.zoo import Trial, task, tried

    families = zoo.families()
    if args.family is not None and args.family not in families:
        raise UserError(f"--family {args.family}: no such family; choose one of {', '.join(families)}")
    known = read_json(args.results, Dict[str, Trial]) if args.results and args.results.exists() else {}

    def look(name: str, compared: bool) -> None:
        if name not in known or compared and known[name].difference is None and known[name].share:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                known[name] = tried(name, compared)
            print(f"{name}: {known[name].said}", file=sys.stderr, flush=True)
            if args.results:
                write_json(args.results, {key: asdict(trial) for key, trial in known.items()})

    rows, tasks = [], {}
    for family, names in families.items():
        if args.family in (None, family):
            for name in names:
                look(name, False)
            for name in sorted((n for n in names if known[n].share), key=lambda n: known[n].params)[: args.compare]:
                look(name, True)
            found = [known[name] for name in names]
            for name in names:
                tasks.setdefault(task(name), []).append(known[name].share > 0)
            good = [row for row in found if row.share]
            run = [row.difference for row in good if row.difference is not None]
            share = f"{sum(row.share for row in good) / len(good):.0%}" if good else ""
            worst = f"{max(run):.0e}" if run else "not compared"
            rows.append(f"| {family} | {len(good)} of {len(found)} | {share} | {len(run)} | {worst} |")
    head = ["| family | can be pruned | channels that can go | compared | difference |", "|---|---|---|---|---|"]
    said = ", ".join(f"{sum(good)} of {len(good)} {key}" for key, good in tasks.items())
    table = "\n".join([*head, *rows, "", f"By task: {said}."])
    print(table, flush=True)
    if args.write and args.family is None:
        write_text(args.write, table + "\n")


if __name__ == "__main__":
    command_line.main(run)

"""Cut every network of the zoo at random, and compare channels removed with channels silenced, family by family.

Per family: networks that can be pruned of all, the share of their channels that can go, and the largest difference
(of all outputs, over the largest) between the network with 30 % of every group silenced and with them removed.
"""

import sys
import warnings
from pathlib import Path

from gcp import command as command_line
from gcp.errors import UserError

START, END = "<!-- zoo -->", "<!-- end of zoo -->"


def run(argv: list) -> None:
    """Parse, try the networks, print and write the table."""
    parser = command_line.Parser(description=__doc__)
    parser.add_argument("--family", help="one family only, such as resnet; the page is then left as it is")
    parser.add_argument("--limit", type=command_line.positive(int), help="networks of each family at most")
    parser.add_argument("--shapes-only", action="store_true", help="no random weights, so no differences")
    parser.add_argument("--write", type=Path, help="put the table between the markers of this page")
    args = parser.parse_args(argv)
    from gcp.backend import zoo
    from gcp.experiment.zoo import tried

    families = zoo.families()
    if args.family is not None and args.family not in families:
        raise UserError(f"--family {args.family}: there are {', '.join(families)}")
    rows = []
    for family, names in families.items():
        if args.family in (None, family):
            found = []
            for name in names[: args.limit]:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    found.append(tried(name, not args.shapes_only))
                print(f"{name}: {found[-1].said}", file=sys.stderr, flush=True)
            good = [row for row in found if row.share]
            share = sum(row.share for row in good) / max(1, len(good))
            worst = max((row.difference for row in good if row.difference is not None), default=None)
            cells = (family, f"{len(good)} of {len(found)}", f"{share:.0%}", "" if worst is None else f"{worst:.0e}")
            rows.append("| " + " | ".join(cells) + " |")
    head = ["| family | can be pruned | channels that can go | difference |", "|---|---|---|---|"]
    table = "\n".join(head + rows)
    print(table)
    if args.write:
        text = args.write.read_text(encoding="utf-8")
        before, _, rest = text.partition(START)
        after = rest.partition(END)[2]
        args.write.write_text(f"{before}{START}\n{table}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    command_line.main(run)

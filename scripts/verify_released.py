"""Check the seven PruneNets that the paper's authors released against the published numbers and our channel groups.

Checking parameters, MACs and widths needs no weights and no images. With both, accuracy is checked against GluonCV's
table.
"""

from __future__ import annotations

import sys
from pathlib import Path

from gcp import command as command_line
from gcp import errors, runtime
from gcp.data import datasets

REFERENCE = Path(__file__).resolve().parents[1] / "results" / "reference"


def run(argv: list) -> None:
    """Parse the arguments, check, print a table; exit with 1 if anything disagrees."""
    parser = command_line.Parser(description=__doc__)
    parser.add_argument(
        "--weights", action="store_true", help="also check accuracies, with GluonCV's published weights"
    )
    parser.add_argument(
        "--imagenet", metavar="ROOT", help="ImageNet, as data.root of a config; its validation images are used"
    )
    parser.add_argument("--batch", type=command_line.batch, default=64)
    args = parser.parse_args(argv)
    if args.weights != bool(args.imagenet):
        raise errors.UserError("--weights and --imagenet ROOT go together: accuracy needs both")
    runtime.use_threads(0)
    from gcp.experiment import (
        measure,
        released,  # imports MXNet, which reads the number of threads as it loads
    )
    from gcp.report import tables

    facts, problems = [], []
    for name, row in released.published(REFERENCE).iterrows():
        found, disagreements = released.verify(name, row, released.shapes(row["shape_json"]))
        if args.weights:
            data = datasets.options(name="imagenet", root=args.imagenet, input=released.INPUT)
            measured = measure.evaluate(name, data, pretrained=True, batch=args.batch)
            found.update({"Top-1 %": 100 * measured["top1"], "Top-5 %": 100 * measured["top5"]})
            disagreements += released.disagreeing_accuracy(name, row, measured)
        facts.append(found)
        problems += disagreements
    print(tables.released(facts))
    print(
        f"\n{len(facts)} networks, {len(problems)} disagreements with what was published"
        + ("" if args.weights else " (accuracies not checked: --weights --imagenet ROOT)")
    )
    for problem in problems:
        print(problem)
    if problems:
        sys.exit(1)


if __name__ == "__main__":
    command_line.main(run)

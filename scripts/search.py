"""Search widths and blocks: train a slimmable network, solve for bounds, draw fronts, validate, rewrite networks."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Callable, List

from gcp import command as command_line
from gcp import errors, runtime, storage
from gcp.experiment import config
from gcp.search import statistics


def run(argv: list[str]) -> None:
    """Parse the arguments and call the verb's function."""
    parser = command_line.Parser(description=__doc__)
    verb = command_line.verbs(parser)

    sub = verb("train", train, "train the slimmable network of a configuration with method ows, or resume it")
    add_config(sub)

    sub = verb("solve", solve, "find the best widths within each bound")
    add_statistics(sub)
    sub.add_argument(
        "--bound",
        action="extend",
        nargs="+",
        required=True,
        metavar="B",
        help="bounds such as 0.4 (a fraction of the network's latency, or of its MACs without a latency model), "
        "macs:0.4, params:0.4, latency:0.4 or 3ms",
    )
    sub.add_argument("--out", metavar="FILE", help="also write the widths to this file (JSON)")

    sub = verb("front", front, "find the best widths at every bound, as a table and a figure")
    add_statistics(sub, many=True)
    sub.add_argument(
        "--points", type=command_line.whole(2, 1000), default=25, help="number of bounds to try (default 25)"
    )
    sub.add_argument("--out", required=True, metavar="PREFIX", help="write PREFIX.md, .csv, .tex, .png and .svg")

    sub = verb("validate", validate, "train random networks, and check whether the gains or qualities rank them well")
    add_config(sub)
    sub.add_argument("--n", type=command_line.whole(3, 10**4), default=20, help="number of networks (default 20)")
    sub.add_argument(
        "--trainings",
        type=command_line.whole(1, 100),
        help="for widths: trainings per network, to see how well their rankings agree (default 1)",
    )
    sub.add_argument(
        "--macs",
        type=command_line.positive(float, 10),
        default=0.25,
        help="the networks' fraction of the MACs (default 0.25)",
    )
    sub.add_argument(
        "--tolerance",
        type=command_line.positive(float, 1),
        help="for a space of architectures: allowed relative deviation from --macs (default 0.025)",
    )
    sub.add_argument(
        "--quality",
        nargs="+",
        default=None,
        metavar="Q",
        help="for a space of architectures: qualities to validate (default: all but trained)",
    )
    sub.add_argument(
        "--out",
        required=True,
        metavar="PREFIX",
        help="write PREFIX.md, .csv, .tex, .png and .svg, and PREFIX.networks.*",
    )

    sub = verb("space", space, "show what a configuration with method architecture can decide, and what that costs")
    add_config(sub)

    sub = verb("explain", explain, "show what a pattern decides, and what each decision saves and costs")
    sub.add_argument(
        "pattern", metavar="PATTERN", help="a pattern.yaml, such as the one in the folder of a finished search"
    )
    sub.add_argument("--latency-model", metavar="MODEL", help="a model written by `latency.py fit`")
    sub.add_argument("--out", metavar="PREFIX", help="write PREFIX.md, .csv, .tex, .png and .svg")

    sub = verb("transfer", transfer, "transfer a pattern to another network, input size or number of classes")
    sub.add_argument("pattern", metavar="PATTERN")
    command_line.add_network(sub)
    sub.add_argument(
        "--round-to", type=command_line.whole(1, 65536), default=8, help="every width is a multiple of this (default 8)"
    )
    sub.add_argument("--out", required=True, metavar="FILE", help="write the other network's pattern to this file")

    sub = verb("landscape", landscape, "plot a cost along a line of widths, for every width and for curated ones")
    command_line.add_network(sub)
    add_cost(sub)
    sub.add_argument(
        "--multiple", type=command_line.whole(1, 4096), help="multiple of curated widths (default: the granularity)"
    )
    sub.add_argument(
        "--points", type=command_line.whole(3, 10**4), default=400, help="points on the line (default 400)"
    )
    sub.add_argument("--out", required=True, metavar="PREFIX", help="write PREFIX.png and .svg")

    sub = verb("rewrite", rewrite, "fuse, fill or leave out blocks of a network; without options, list candidates")
    command_line.add_network(sub)
    for name, what in (
        ("fuse", "depthwise layers to fuse with their 1x1 expansions"),
        ("full", "depthwise layers to replace by ordinary convolutions"),
        ("drop", "residual blocks to leave out, named by their additions"),
    ):
        sub.add_argument(f"--{name}", action="extend", nargs="+", default=[], metavar="NAME", help=what)
    sub.add_argument("--out", metavar="PREFIX", help="prefix under which the rewritten network is saved")
    args = parser.parse_args(argv)
    args.function(args)


def add_config(sub: argparse.ArgumentParser) -> None:
    """Add the arguments for a configuration, overlays and overrides."""
    sub.add_argument("config", metavar="CONFIG")
    command_line.add_overlay(sub)


def add_cost(sub: argparse.ArgumentParser) -> None:
    """Add the options for a cost that is defined by a file."""
    of = sub.add_mutually_exclusive_group(required=True)
    of.add_argument("--latency-model", metavar="MODEL", help="a model written by `latency.py fit`")
    of.add_argument("--device", metavar="FILE", help="a YAML file that describes a device, see configs/device.yaml")


def add_statistics(sub: argparse.ArgumentParser, many: bool = False) -> None:
    """Add the arguments for a file of statistics, how gains are estimated from it, and latency models."""
    sub.add_argument("statistics", metavar="STATISTICS", help="a file written by `train`")
    text = "a model that `latency.py fit` wrote"
    if many:
        text += "; several, for several devices"
    sub.add_argument("--latency-model", nargs="+" if many else None, metavar="MODEL", help=text)
    sub.add_argument("--estimator", choices=list(statistics.ESTIMATORS), default="least_squares")
    sub.add_argument(
        "--window",
        type=command_line.positive(float, 1),
        default=0.5,
        help="the last fraction of the steps, from which gains are estimated (default 0.5)",
    )


def train(args: argparse.Namespace) -> None:
    """Train the slimmable network if it does not exist, and print the path of its statistics."""
    cfg = _config(args)
    from gcp.experiment import width_search

    print(width_search.train(cfg))


def solve(args: argparse.Namespace) -> None:
    """Print, for each bound, a line with costs and gain and a line with the widths."""
    runtime.use_threads(1)
    from gcp.experiment import width_search

    rows = []
    problem = _problem(args, args.latency_model)
    for row in width_search.solve(problem, args.bound):
        rows.append(row)
        cost = f"{1e3 * row['value']:.4g} ms, " if row["cost"] == "latency" else ""
        print(
            f"{row['bound']}: {cost}{100 * row['kept']:.2f} % of the {row['cost']}; "
            f"MACs {100 * row['macs_kept']:.1f} %, params {100 * row['params_kept']:.1f} %; "
            f"gain {row['gain']:.4f}, at most {100 * row['gap']:.2g} % more"
        )
        print("  " + ", ".join(f"{group} {width}" for group, width in row["widths"].items()))
    if args.out:
        storage.write_json(args.out, rows)


def front(args: argparse.Namespace) -> None:
    """Write the table and the picture of each cost."""
    runtime.use_threads(1)
    from gcp.experiment import width_search
    from gcp.report import tables
    from gcp.report import width_search as report

    costs = [("latency", model) for model in args.latency_model or ()] or [("macs", None)]
    for number, (name, model) in enumerate(costs):
        prefix = Path(args.out + (f"-{number + 1}" if len(costs) > 1 else ""))
        problem = _problem(args, model)
        rows, uniform = width_search.front(problem, name, args.points), width_search.uniform(problem, name)
        with tables.writing(prefix.parent, "--out"):
            sizes, network = problem.held.header.sizes, problem.network.name
            paths = report.write_front(rows, uniform, sizes, network, prefix)
        for path in paths:
            print(path)


def validate(args: argparse.Namespace) -> None:
    """Train the networks that are missing, then write all of them and the rank correlations."""
    cfg = _config(args)
    is_space = cfg.prune.method == "architecture"
    for name in ("trainings",) if is_space else ("tolerance", "quality"):
        if getattr(args, name) is not None:
            of = "widths" if is_space else "a space of architectures"
            wrong = f"is for {of}, but the configuration's method is {cfg.prune.method}; leave it out"
            raise errors.UserError(f"--{name}: {wrong}", "search.method")
    if is_space:
        return _validate_qualities(cfg, args)
    from gcp.experiment import width_search
    from gcp.report import width_search as report

    with runtime.progress_bar(f"{cfg.name}, random widths", "net") as progress:
        rows = width_search.validate(cfg, args.n, args.macs, progress, args.trainings or 1)
    _write_checks(lambda out: report.write_checks(rows, out), args)


def _validate_qualities(cfg: config.Config, args: argparse.Namespace) -> None:
    from gcp.experiment import architecture_search
    from gcp.report import architecture_search as report
    from gcp.search.quality import QUALITIES

    asked = args.quality or [name for name in QUALITIES if name != "trained"]
    for name in asked:
        QUALITIES[name]  # raises if the name is unknown, before anything is trained
    with runtime.progress_bar(f"{cfg.name}, random architectures", "net") as progress:
        rows = architecture_search.validate(cfg, args.n, args.macs, asked, args.tolerance or 0.025, progress)
    _write_checks(lambda out: report.write_checks(rows, asked, out), args)


def _write_checks(write: Callable[[Path], List[Path]], args: argparse.Namespace) -> None:
    from gcp.report import tables

    with tables.writing(Path(args.out).parent, "--out"):
        paths = write(Path(args.out))
    print(Path(f"{args.out}.md").read_text(encoding="utf-8"))
    for path in paths:
        print(path)


def space(args: argparse.Namespace) -> None:
    """Print the decisions, how many architectures there are, and what they cost."""
    cfg = _config(args)
    from gcp.experiment import architecture_search

    found = architecture_search.described(cfg)
    for name, values in found.decisions.items():
        print(f"{name}: {', '.join(map(str, values))}")
    for name, value in found.fixed.items():
        print(f"{name}: {value} (frozen)")
    print(f"{found.network}: {len(found.decisions)} decisions, {found.n_architectures:.3g} architectures")
    for name, (low, high, own) in found.ranges.items():
        print(
            f"{name}: {low:.6g} to {high:.6g}, {100 * low / own:.1f} to {100 * high / own:.1f} % of the network's own"
        )
    print(f"within {'; '.join(found.budgets)}: {100 * found.reachable:.2f} % of random architectures")


def explain(args: argparse.Namespace) -> None:
    """Print what a pattern decides, in words, and write the table and the picture."""
    runtime.use_threads(1)
    from gcp.experiment import architecture_search
    from gcp.report import architecture_search as report
    from gcp.report import tables

    found = architecture_search.explained(Path(args.pattern), args.latency_model and Path(args.latency_model))
    for line in report.in_words(found):
        print(line)
    if args.out:
        with tables.writing(Path(args.out).parent, "--out"):
            paths = report.write_explained(found, Path(args.out))
        for path in paths:
            print(path)


def transfer(args: argparse.Namespace) -> None:
    """Transfer a pattern to another network, and write it."""
    runtime.use_threads(1)
    from gcp.experiment import architecture_search
    from gcp.search import patterns

    found = architecture_search.transfer(Path(args.pattern), args.network, args.input, args.classes, args.round_to)
    patterns.write(Path(args.out), found)
    print(args.out)


def landscape(args: argparse.Namespace) -> None:
    """Draw a cost along a line of widths, and print how many local minima it has."""
    runtime.use_threads(1)
    from gcp.backend.zoo import open_network
    from gcp.cost.base import COSTS, local_minima
    from gcp.experiment import width_search
    from gcp.report import figures, tables

    net = open_network(args.network, args.input, args.classes)
    name, path = ("device", args.device) if args.device else ("latency", args.latency_model)
    key = "device" if args.device else "latency_model"
    cost = COSTS[name](net, COSTS.options[name](**{key: path}))
    lines = width_search.landscape(net, cost, args.points, args.multiple or cost.granularity or 1)
    title = f"{net.name}, {'x'.join(map(str, net.input_shape))}, by {Path(path).name}"
    with tables.writing(Path(args.out).parent, "--out"):
        paths = figures.save(figures.landscape(lines, title), Path(args.out))
    for label, line in lines.items():
        print(f"{label}: {len(line)} points on the line, local minima: {local_minima(line.ms)}")
    for path in paths:
        print(path)


def rewrite(args: argparse.Namespace) -> None:
    """Print the blocks that can be rewritten, or what the rewritten network costs."""
    runtime.use_threads(1)
    from gcp.backend.files import save
    from gcp.backend.zoo import open_network
    from gcp.cost.analytic import macs, params
    from gcp.graph import rewrites
    from gcp.graph.channels import layer_name

    net = other = open_network(args.network, args.input, args.classes, seed=0)
    for function, names in (
        (rewrites.fuse_expand, args.fuse),
        (rewrites.depthwise_to_full, args.full),
        (rewrites.drop_block, args.drop),
    ):
        for name in names:
            # Layers may be named as in GluonCV; the names of their nodes have a suffix.
            other = function(other, name if name in other.index or name + "_fwd" not in other.index else name + "_fwd")
    if other is net:
        for option, found in (("--fuse", rewrites.expansions(net)), ("--drop", rewrites.droppable(net))):
            print(f"{option}  {' '.join(map(layer_name, found)) or '(none)'}")
        return
    for count in (macs, params):
        before, after = (int(count(of)(of.widths)) for of in (net, other))
        print(f"{count.label}: {before:,} -> {after:,} ({100 * after / before:.1f} %)")
    if args.out:
        for path in save(other, args.out):
            print(path)


def _config(args: argparse.Namespace) -> config.Config:
    cfg = config.load(args.config, args.set, args.overlay)
    runtime.use_threads(cfg.threads)
    return cfg


def _problem(args: argparse.Namespace, model):
    from gcp.experiment import width_search

    return width_search.WidthProblem.open(Path(args.statistics), args.estimator, args.window, model and Path(model))


if __name__ == "__main__":
    command_line.main(run)

"""Measure pruning without training: train small networks, cut them in many ways, and write tables of the results."""

from __future__ import annotations

from pathlib import Path

from gcp import command as command_line
from gcp import runtime
from gcp.errors import UserError
from gcp.experiment import config

TARGETS = (0.7, 0.5, 0.3, 0.2, 0.1)


def run(argv: list[str]) -> None:
    """Parse the arguments, measure what is missing, and write the tables."""
    parser = command_line.Parser(description=__doc__)
    parser.add_argument(
        "configs", nargs="?", default="configs/without_training", help="a folder of configurations, or a single one"
    )
    parser.add_argument("--seeds", type=command_line.seeds, default=[0, 1, 2], metavar="0,1,2")
    command_line.add_overlay(parser)
    args = parser.parse_args(argv)
    loaded = [cfg for _, _, cfg in config.load_all(args.configs, args.set, args.seeds, args.overlay)]
    networks = [(cfg.model.name, cfg.seed) for cfg in loaded]
    for cfg in loaded:
        if networks.count((cfg.model.name, cfg.seed)) > 1:
            wrong = f"several of these configurations are of {cfg.model.name}, whose table would mix them"
            raise UserError(f"{cfg.name}: {wrong}; give one at a time, each with an output of its own")
    runtime.use_threads(loaded[0].threads)
    from gcp.experiment import without_training
    from gcp.report import tables

    rows = []
    for cfg in loaded:
        with runtime.progress_bar(f"{cfg.name} seed {cfg.seed}", "cut") as progress:
            rows += without_training.measure(cfg, TARGETS, progress)
    for path in tables.write_without_training(rows, Path(loaded[0].output)):
        print(path)


if __name__ == "__main__":
    command_line.main(run)

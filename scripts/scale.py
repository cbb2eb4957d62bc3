"""Simulate what a full reproduction of the paper's tables takes on many GPUs, from numbers that each name a source.

Nothing is trained, and no data are needed. scripts/docs.py embeds the page in docs/scale.md.
"""

from pathlib import Path

from gcp import command as command_line
from gcp import runtime, storage
from gcp.experiment import schedule

REPO = Path(__file__).resolve().parents[1]


def run(argv: list) -> None:
    """Parse the arguments, count images, simulate, write and print the page."""
    parser = command_line.Parser(description=__doc__)
    parser.add_argument(
        "--parameters", default=str(REPO / "configs" / "scale.yaml"), help="YAML file: numbers and sources"
    )
    parser.add_argument(
        "--output", default=str(REPO / "results" / "forecast"), help="folder for scale.md and scale.csv"
    )
    args = parser.parse_args(argv)
    values = schedule.read(Path(args.parameters))
    runtime.use_threads(0)
    from gcp.report import scale

    rows = [row for table in values["tables"] for row in counted(REPO / "configs" / table)]
    parameters, folder = schedule.Parameters(values, REPO), Path(args.output)
    folder.mkdir(parents=True, exist_ok=True)
    text = scale.page(parameters, rows)
    storage.write_text(folder / "scale.md", text)
    storage.write_text(folder / "scale.csv", scale.frame(parameters, rows).round(4).to_csv(index=False))
    print(text)


def counted(folder: Path) -> list:
    """The rows of a table: what each computes, and the row of another table that it starts from, if any."""
    from gcp.cost.analytic import macs
    from gcp.experiment import config, estimate  # these import MXNet, which reads the number of threads as it loads

    cfgs, rows = [cfg for _, _, cfg in config.load_all(folder)], []
    for cfg, found in zip(cfgs, estimate.forecast(cfgs)):
        net, widths, _ = estimate.start_network(cfg, estimate.sizes(cfg)[0])
        cost, start = macs(net), cfg.paper.starts_from and Path(cfg.paper.starts_from)
        recipe = cfg.finetune if found.images_finetune else cfg.train
        rows.append(
            schedule.Row(
                f"{folder.name}/{cfg.name}",
                net.name,
                recipe.dtype == "float32",
                found.images_dense,
                found.images_prune,
                found.images_finetune,
                float(cost(widths) / cost(net.widths)),
                float(found.macs / cost(net.widths)),
                start and f"{start.parent.name}/{start.stem}",
            )
        )
    return rows


if __name__ == "__main__":
    command_line.main(run)

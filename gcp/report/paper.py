"""The paper's Tables 1 to 6 and Figures 1 to 3 in its own layout, from records and published numbers.

A record states where it belongs (`paper.table` and `paper.level` of its configuration). Published numbers come only
from results/reference, each method with its own base accuracy; what is missing there prints "-".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from gcp.cost.base import COSTS
from gcp.experiment.record import Finished, Stage
from gcp.methods.base import METHODS
from gcp.report import figure1, figures, frame, tables
from gcp.report.frame import DENSE_SECTIONS, PRUNE_SECTIONS, Measure
from gcp.report.tables import MISSING


class Layout(NamedTuple):
    """One of the paper's tables: network and data, the cost that its levels count, and targets chosen by us."""

    network: str  # as in the published tables
    data: str
    cost: str  # "macs" or "params"
    methods: tuple[str, ...]  # the paper's own rows at each level
    chosen: tuple[float, ...] = ()  # fractions kept at the levels after the published ones


TABLES = {
    "table1": Layout("ResNet-18", "ImageNet", "macs", ("Uniform", "GCP-f")),
    "table2": Layout("ResNet-18", "ImageNet", "params", ("GCP-p",)),
    # The FLOPs of the released resnet50_v1d_0.37 and _0.11, and of resnet101_v1d_0.76 and _0.73.
    "table3": Layout("ResNet-50", "ImageNet", "macs", ("Uniform", "GCP-f"), (0.139, 0.045)),
    "table4": Layout("ResNet-50", "ImageNet", "params", ("GCP-p",)),
    "table5": Layout("ResNet-101", "ImageNet", "macs", ("Uniform", "GCP-f"), (0.629, 0.552)),
    "table6": Layout("ResNet-50", "Caltech-256", "macs", ("GCP-f",), (0.643, 0.446, 0.29, 0.139, 0.045)),
}
# The paper's Figures 2 and 3: width kept per layer, at a level of a table.
WIDTHS = {"paper_figure2": ("table3", 3), "paper_figure3": ("table4", 3)}

MEASURES = (
    Measure("Params reduction", "params_reduction"),
    Measure("FLOPs reduction", "flops_reduction"),
    Measure("Top-1 drop", "top1_drop", "mean +- sd"),
    Measure("Top-5 drop", "top5_drop", "mean +- sd"),
    Measure("Base top-1 %", "base_top1"),
    Measure("Base top-5 %", "base_top5"),
    Measure("Top-1 %", "top1", "mean +- sd"),
    Measure("Top-5 %", "top5"),
)
REDUCTIONS = ("Params reduction", "FLOPs reduction")
QUOTED = [*REDUCTIONS, "Top-1 drop", "Top-5 drop"]  # equal numbers mark a row of the paper as quoted from another
ACCURACIES = ["Base top-1 %", "Base top-5 %", "Top-1 %", "Top-5 %", "Source"]
COLUMNS = ["Level", "Method", *frame.titles(MEASURES), "Seeds", "Source", *(f"{title} text" for title in REDUCTIONS)]
TITLES = {  # columns of the published files -> titles
    "method": "Method",
    "params_reduction": "Params reduction text",
    "flops_reduction": "FLOPs reduction text",
    "top1_drop": "Top-1 drop",
    "top5_drop": "Top-5 drop",
    "abs_top1": "Top-1 %",
    "abs_top5": "Top-5 %",
    "source": "Source",
    "status": "Source",
}


class Reference(NamedTuple):
    """Published numbers: the paper's rows, other methods' rows (placed by us), and the networks of its Figure 1."""

    skeleton: pd.DataFrame
    published: pd.DataFrame
    networks: pd.DataFrame


def write(runs: Sequence[Finished], reference: Path, output: Path, every: bool = False) -> list[Path]:
    """Write the paper's tables and figures for which the runs have data (all six tables if `every`); return the paths.

    Files: paper_table1.md, .tex, .csv and so on; paper_figure1 to paper_figure3 as .png and .svg. The same runs give
    the same bytes. UserError: a published table is missing.
    """
    known, runs, paths = published(reference), frame.unique(runs), []
    for name, layout in TABLES.items():
        own = [run for run in runs if place(run)[0] == name]
        if own or every:
            paths += write_table(name, layout, own, known, output / f"paper_{name}")
    for name, where in WIDTHS.items():
        own = [run for run in runs if place(run) == where and run.record.method == "gcp"]
        paths += figures.save(figures.widths(frame.frame(own)), output / name)
    points = measured_points(runs)
    if len(points):
        figure = figures.figure1(
            pd.concat([known.networks, points], ignore_index=True),
            figures.KINDS,
            "ImageNet accuracy against throughput: published networks, and this toolkit's",
            f"Published: {figure1.published_on(known.networks)}. This toolkit's: {'; '.join(points.device.unique())}. "
            "Speeds compare on one device only.",
        )
        paths += figures.save(figure, output / "paper_figure1")
    return paths


def write_table(name: str, layout: Layout, runs: Sequence[Finished], known: Reference, stem: Path) -> list[Path]:
    """Write one table: the paper's rows level by level, with ours beside them and other published methods below."""
    rows, n_unplaced = table(name, layout, runs, known)
    caption = _caption(name, layout, runs, n_unplaced)
    return tables.save(rows, tables.digits_of(MEASURES), caption, stem, f"tab:{name}", blocks="Level")


def table(name: str, layout: Layout, runs: Sequence[Finished], known: Reference) -> tuple[pd.DataFrame, int]:
    """The rows of a table, and how many published rows have no place in it.

    "Params reduction text" and "FLOPs reduction text" are the reductions as printed; a published one keeps the digits
    that its source gave.
    """
    blocks = levels(name, known)
    targets = {level: target for level, (target, _) in blocks.items()}
    papers = pd.concat([rows.assign(level=level) for level, (_, rows) in blocks.items()], ignore_index=True)
    papers = papers.reindex(columns=["level", *COLUMNS])
    others = known.published[(known.published.network == layout.network) & (known.published.data == layout.data)]
    numbers, known_numbers, quoted = papers[QUOTED].astype(float).fillna(-1), others[QUOTED].fillna(-1), []
    for i, row in papers[papers["Top-5 drop"].notna()].iterrows():
        same = others[(known_numbers == numbers.loc[i]).all(axis=1) & others.Method.str.startswith(row.Method)]
        if len(same):
            quoted.append(same.index[0])
            papers.loc[i, ACCURACIES] = same.iloc[0][ACCURACIES]
    reduction = "FLOPs reduction" if layout.cost == "macs" else "Params reduction"
    others = others.drop(index=quoted).sort_values([reduction, "Method"])
    placed = others[others[reduction].notna()]
    nearest = [min(targets, key=lambda level: abs(math.log(x * targets[level]))) for x in placed[reduction]]
    titles = {0: "0: not pruned"}
    for level, target in targets.items():
        chosen = ", chosen" if level > len(blocks) - len(layout.chosen) else ""
        titles[level] = f"{level}: {100 * target:.4g} % of {COSTS[layout.cost].paper_label}{chosen}"
    parts = [papers, _ours(layout, runs, targets), placed.assign(level=nearest)]
    rows = pd.concat([part.reindex(columns=["level", *COLUMNS]).astype(object) for part in parts])
    rows = rows.sort_values("level", kind="stable", ignore_index=True)
    rows = rows.assign(Level=rows.level.map(titles))[COLUMNS]
    rows = rows.astype(dict.fromkeys([*frame.titles(MEASURES), "Seeds"], float))
    for title in REDUCTIONS:
        texts = [MISSING if pd.isna(value) else f"{tables.number(value, 2)}x" for value in rows[title]]
        rows[f"{title} text"] = rows[f"{title} text"].where(rows[f"{title} text"].notna(), texts)
    return rows, len(others) - len(placed)


# ---- published -----------------------------------------------------------------------------------------------------


def published(folder: Path) -> Reference:
    """Read the tables of results/reference.

    UserError: one is missing or is not as it came with the toolkit.
    """

    def read(name: str, columns: str) -> pd.DataFrame:
        table = figure1.read_table(folder / name, {key: TITLES.get(key, key) for key in columns.split()})
        for title in REDUCTIONS:
            if f"{title} text" in table:  # such as 1.39x; anything else is not a number
                table[title] = pd.to_numeric(table[f"{title} text"].str.extract(r"^(.+)x$")[0])
                table[f"{title} text"] = table[f"{title} text"].where(table[title].notna())
        return table

    numbers = "params_reduction flops_reduction top1_drop top5_drop"
    methods = read("published_reference.csv", f"method network dataset {numbers} source abs_top1 abs_top5 notes")
    # A base accuracy is accuracy plus drop, or else what the notes say.
    stated = methods.notes.str.extract(r"\bbase (\d\d\.\d+)(?:/(\d\d\.\d+))?").astype(float)
    for k, n in enumerate((1, 5)):
        methods[f"Base top-{n} %"] = (methods[f"Top-{n} %"] + methods[f"Top-{n} drop"]).fillna(stated[k])
    skeleton = read("prunenet_table_skeleton.csv", f"table row method {numbers} target_fraction_kept status")
    released = read(
        "released_prunenets.csv", "model top1 top5 base_model base_top1 base_top5 params_kept macs_reduction"
    )
    ours = {
        "network": "ResNet-" + released.base_model.str.extract("([0-9]+)")[0],
        "data": "ImageNet",
        "Method": "PruneNet " + released.model + " (released)",
        "Params reduction": 1 / released.params_kept,
        "FLOPs reduction": released.macs_reduction,
        "Source": "GluonCV model zoo",
    }
    for n in (1, 5):
        top, base = released[f"top{n}"], released[f"base_top{n}"]
        ours |= {f"Top-{n} drop": base - top, f"Base top-{n} %": base, f"Top-{n} %": top}
    known = pd.concat([methods.rename(columns={"dataset": "data"}), pd.DataFrame(ours)], ignore_index=True)
    return Reference(skeleton, known, figure1.published(folder))


def levels(name: str, known: Reference) -> dict[int, tuple[float, pd.DataFrame]]:
    """The levels of a table, each as (fraction kept, the paper's own rows there, in its order)."""
    layout, rows = TABLES[name], known.skeleton[known.skeleton.table == int(name[-1])]
    own = pd.DataFrame({"Method": layout.methods, "Source": " ".join(rows.Source)})
    rows = rows[~rows.row.str.contains("-")]  # of Tables 5 and 6 only the kinds of rows are known, on one line
    is_last = rows.Method.str.startswith("GCP")
    blocks = [block for _, block in rows.groupby(is_last.cumsum() - is_last)]
    targets = [*rows.target_fraction_kept[is_last].dropna(), *layout.chosen]
    blocks += [own] * (len(targets) - len(blocks))
    return dict(enumerate(zip(targets, blocks), 1))


# ---- ours ----------------------------------------------------------------------------------------------------------


def place(run: Finished) -> tuple[str | None, int]:
    """The table and level to which a run says it belongs."""
    own = run.record.config.get("paper") or {}
    return own.get("table"), own.get("level", 0)


def _ours(layout: Layout, runs: Sequence[Finished], targets: dict[int, float]) -> pd.DataFrame:
    """A row per level, scale and method, aggregated over seeds.

    The method is named with every option that distinguishes it from its neighbours. A pruned network's drop is relative
    to its own dense network; on Caltech-256, where training starts from pruned networks, it is relative to the run of
    level 0 with the same scale and seed.
    """
    unpruned = {(run.record.scale, run.record.seed): run.record.stages.final for run in runs if place(run)[1] == 0}
    names = [_label(run, name, layout, targets) for run, (_, name) in zip(runs, frame.method_names(runs))]
    cells = [(place(run)[1], run.record.scale, name) for run, name in zip(runs, names)]
    rows = []
    for run, (level, scale, name), more in zip(
        runs, cells, frame.varying(runs, cells, DENSE_SECTIONS + PRUNE_SECTIONS)
    ):
        record, stages = run.record, run.record.stages
        base = unpruned.get((scale, record.seed)) if layout.data == "Caltech-256" else stages.dense
        where = f"{record.model} on {record.data}, {record.config['data']['input'][1]} px"
        row = {"level": level, "scale": scale, "label": ", ".join((name, *more)), "seed": record.seed, "where": where}
        rows.append(row | _measured(stages.final, base))
    if not rows:
        return pd.DataFrame()
    cell = ["level", "scale", "label"]
    runs = pd.DataFrame(rows).sort_values(cell, kind="stable")
    where = runs.groupby(cell)["where"].agg(lambda names: " and ".join(sorted(set(names))))
    table = frame.aggregate(runs, cell, MEASURES).assign(Source=("measured: " + where).to_list())
    return table.assign(Method="this toolkit: " + table.label + table.scale.map(figures.mark))


def _label(run: Finished, name: str, layout: Layout, targets: dict[int, float]) -> str:
    """The method as its row is called, with the target if that differs from the level's."""
    level, target = place(run)[1], run.record.target
    if not METHODS.options[run.record.method].PRUNES:
        return layout.methods[-1] if level else name
    return name if target == targets.get(level) else f"{name}, target {100 * target:.4g} %"


def _measured(final: Stage, base: Stage | None) -> dict[str, float]:
    """A network's numbers in the paper's terms: reductions are old / new, accuracies in percent, drops in points."""
    nan = float("nan")
    numbers = {
        "params_reduction": base.params / final.params if base else nan,
        "flops_reduction": base.macs / final.macs if base else nan,
    }
    for key in ("top1", "top5"):
        new, old = 100 * getattr(final, key), 100 * getattr(base, key) if base else nan
        numbers |= {key: new, f"base_{key}": old, f"{key}_drop": old - new}
    return numbers


# ---- captions and figures ------------------------------------------------------------------------------------------


def _caption(name: str, layout: Layout, runs: Sequence[Finished], n_unplaced: int) -> str:
    counted = COSTS[layout.cost].paper_label
    sentences = [
        f"The paper's Table {name[-1]}: {layout.network} on {layout.data}; levels are fractions of the {counted} kept.",
        "Reductions: old / new, FLOPs as multiply-accumulates. Drops: points of accuracy, positive is worse.",
        "Every published method stands on its own base accuracy: compare drops.",
        f"{MISSING}: not published in any text at hand, or not measured.",
    ]
    if layout.chosen:
        sentences.append("Chosen: the paper's level is not published, so one was chosen.")
    if runs:
        sentences.append("This toolkit: mean ± sample standard deviation over seeds.")
        sentences += tables.scale_sentences(run.record.scale for run in runs)
    else:
        sentences.append("This toolkit: no record yet.")
    if n_unplaced:
        sentences.append(f"Left out: {n_unplaced} published rows that do not say their reduction of {counted}.")
    return " ".join(sentences)


def measured_points(runs: Sequence[Finished]) -> pd.DataFrame:
    """Our networks as points of Figure 1: those tested on ImageNet's images and timed, aggregated over seeds."""
    runs = [
        run for run in runs if place(run)[0] not in (None, "table6") and run.record.data == "imagenet" and run.speeds
    ]
    rows = []
    for run, (_, name) in zip(runs, frame.method_names(runs)):
        record = run.record
        target = f" {100 * record.target:.4g} %" if METHODS.options[record.method].PRUNES else ""
        rows.append(
            {
                "name": f"{record.model}: {name}{target}{figures.mark(record.scale)}",
                "device": frame.device_of(run),
                "top1": 100 * record.stages.final.top1,
                "images_per_second": run.speeds.throughput.final.images_per_second,
            }
        )
    points = pd.DataFrame(rows, columns=["name", "device", "top1", "images_per_second"])
    joined = points.groupby(["name", "device"], as_index=False).agg({"top1": "mean", "images_per_second": "median"})
    return joined.assign(base=None, chain=None, kind=figures.OURS)

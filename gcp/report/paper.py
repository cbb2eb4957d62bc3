"""Records and published numbers in, the paper's tables 1 to 6 and Figures 1 to 3 in its own layout out.

A record says where it belongs (`paper.table` and `paper.level` of its configuration). Published numbers come from
results/reference alone, each method on its own base accuracy; what is not there prints "-".
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from gcp.errors import UserError
from gcp.report import figure1, figures, report, tables
from gcp.report.report import Measure
from gcp.report.tables import MISSING

COSTS = {"macs": "FLOPs", "params": "params"}


class Layout(NamedTuple):
    """One of the paper's tables: network and data, what its levels count, and targets that we had to choose."""

    network: str  # as in the published tables
    data: str
    cost: str  # "macs" or "params"
    methods: tuple[str, ...]  # the paper's own rows of a level
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
WIDTHS = {"figure2": ("table3", 3), "figure3": ("table4", 3)}

MEASURES = (
    Measure("Params reduction", "params_reduction", "mean", 2),
    Measure("FLOPs reduction", "flops_reduction", "mean", 2),
    Measure("Top-1 drop", "top1_drop", "mean +- sd", 2),
    Measure("Top-5 drop", "top5_drop", "mean +- sd", 2),
    Measure("Base top-1 %", "base_top1", "mean", 2),
    Measure("Base top-5 %", "base_top5", "mean", 2),
    Measure("Top-1 %", "top1", "mean +- sd", 2),
    Measure("Top-5 %", "top5", "mean", 2),
)
REDUCTIONS = ("Params reduction", "FLOPs reduction")
COLUMNS = ["Level", "Method", *report.titles(MEASURES), "Seeds", "Source"]


class Reference(NamedTuple):
    """Published numbers: the paper's rows, other methods' (ours to place), and the networks of its Figure 1."""

    skeleton: pd.DataFrame
    published: pd.DataFrame
    networks: pd.DataFrame


def write(records: list[dict], reference: Path, output: Path, every: bool = False) -> list[Path]:
    """Write the paper's tables and figures that the records have something for (all six tables, if `every`).

    `table1.md`, `.tex`, `.csv` and so on; figure1 to figure3 as .png and .svg. Returns the paths. The same records give
    the same bytes. UserError: a published table is missing, or `output` cannot be written.
    """
    known = published(reference)
    unique = {record["fingerprint"]: record for record in records}
    records = list(unique.values())
    paths = []
    try:
        output.mkdir(parents=True, exist_ok=True)
        for name, layout in TABLES.items():
            own = [record for record in records if _place(record)[0] == name]
            if own or every:
                paths += write_table(name, layout, own, known, output / f"paper_{name}")
        paths += _write_figures(records, known, output)
    except OSError as error:
        raise UserError(
            f"{error.filename or output}: cannot write the paper's tables ({error.strerror}); choose "
            "another folder with --output"
        ) from error
    return paths


def write_table(name: str, layout: Layout, records: list[dict], known: Reference, stem: Path) -> list[Path]:
    """One table: the paper's rows level by level, ours beside them, other published methods below."""
    numbers, printed, n_unplaced = table(name, layout, records, known)
    caption = _caption(name, layout, records, n_unplaced)
    align = ["left" if title in ("Level", "Method", "Source") else "right" for title in printed.columns]
    return tables.write(numbers, printed, align, caption, stem, f"tab:{name}", blocks="Level")


def table(name: str, layout: Layout, records: list[dict], known: Reference) -> tuple[pd.DataFrame, pd.DataFrame, int]:
    """The rows as numbers, the same as they print, and how many published ones have no place in it."""
    skeleton = known.skeleton[known.skeleton.table == int(name[-1])]
    blocks = levels(layout, skeleton)
    others = known.published[(known.published.network == layout.network) & (known.published.data == layout.data)]
    key = f"{'flops' if layout.cost == 'macs' else 'params'}_reduction"
    placed = {level: [] for level in blocks}
    n_unplaced, used = 0, set()
    papers = {level: [_with_base(row, known.published, used) for row in rows] for level, (_, rows) in blocks.items()}
    for i, row in others.iterrows():
        if i in used:
            continue
        if pd.isna(row[key]):
            n_unplaced += 1
            continue
        nearest = min(blocks, key=lambda level: abs(math.log(row[key] * blocks[level][0])))
        placed[nearest].append(row)
    ours = _ours(layout, records, {level: target for level, (target, _) in blocks.items()})
    lines = [("0: not pruned", row) for _, row in ours[ours.level == 0].iterrows()]
    for level, (target, _) in blocks.items():
        chosen = ", chosen" if level > len(blocks) - len(layout.chosen) else ""
        title = f"{level}: {100 * target:.4g} % of {COSTS[layout.cost]}{chosen}"
        lines += [(title, row) for row in papers[level]]
        lines += [(title, row) for _, row in ours[ours.level == level].iterrows()]
        lines += [(title, row) for row in sorted(placed[level], key=lambda row: (row[key], row["Method"]))]
    frame = pd.DataFrame(
        [{"Level": title, **{t: row.get(t) for t in COLUMNS[1:]}} for title, row in lines], columns=COLUMNS
    )
    numeric = report.titles(MEASURES)
    frame[numeric] = frame[numeric].astype(float)
    printed = report.formatted(
        frame.assign(Seeds=[MISSING if pd.isna(n) else str(int(n)) for n in frame.Seeds]), MEASURES
    )
    for title in REDUCTIONS:
        # A published reduction prints with the digits that its source gave it.
        said = [row.get(f"{title} said") for _, row in lines]
        printed[title] = [
            text if isinstance(text, str) else cell if cell == MISSING else f"{cell}x"
            for text, cell in zip(said, printed[title])
        ]
    return frame, printed, n_unplaced


# ---- published -----------------------------------------------------------------------------------------------------


def published(folder: Path) -> Reference:
    """The tables of results/reference. UserError: one is missing or is not as it came with the toolkit."""
    methods = figure1.read_table(
        folder / "published_reference.csv",
        {
            key: key
            for key in (
                "method",
                "network",
                "dataset",
                "params_reduction",
                "flops_reduction",
                "top1_drop",
                "top5_drop",
                "source",
                "abs_top1",
                "abs_top5",
                "notes",
            )
        },
    )
    skeleton = figure1.read_table(
        folder / "prunenet_table_skeleton.csv",
        {
            key: key
            for key in (
                "table",
                "row",
                "method",
                "params_reduction",
                "flops_reduction",
                "top1_drop",
                "top5_drop",
                "target_fraction_kept",
                "status",
            )
        },
    )
    released = figure1.read_table(
        folder / "released_prunenets.csv",
        {
            key: key
            for key in (
                "model",
                "top1",
                "top5",
                "base_model",
                "base_top1",
                "base_top5",
                "params_kept",
                "macs_reduction",
            )
        },
    )
    rows = [_published_row(row) for row in methods.to_dict("records")]
    for row in released.to_dict("records"):
        depth = re.match(r"resnet(\d+)", row["base_model"])[1]
        rows.append(
            {
                "network": f"ResNet-{depth}",
                "data": "ImageNet",
                "Method": f"PruneNet {row['model']} (released)",
                "params_reduction": 1 / row["params_kept"],
                "flops_reduction": row["macs_reduction"],
                "Params reduction": 1 / row["params_kept"],
                "FLOPs reduction": row["macs_reduction"],
                "Top-1 drop": row["base_top1"] - row["top1"],
                "Top-5 drop": row["base_top5"] - row["top5"],
                "Base top-1 %": row["base_top1"],
                "Base top-5 %": row["base_top5"],
                "Top-1 %": row["top1"],
                "Top-5 %": row["top5"],
                "Source": "GluonCV model zoo",
            }
        )
    return Reference(skeleton, pd.DataFrame(rows), figure1.published(folder))


def _published_row(row: dict) -> dict:
    """A row of published_reference.csv in our columns; the base is accuracy plus drop, else what the notes say."""
    line = {
        "network": row["network"],
        "data": row["dataset"],
        "Method": row["method"],
        "Source": row["source"],
        **_reductions(row),
    }
    stated = re.search(r"\bbase (\d\d\.\d+)(?:/(\d\d\.\d+))?", str(row["notes"]))
    for n, key in ((1, "top1"), (2, "top5")):
        title = f"Top-{key[-1]}"
        line[f"{title} %"], line[f"{title} drop"] = row[f"abs_{key}"], row[f"{key}_drop"]
        base = row[f"abs_{key}"] + row[f"{key}_drop"]
        if pd.isna(base) and stated and stated[n]:
            base = float(stated[n])
        line[f"Base top-{key[-1]} %"] = base
    return line


def _reductions(row: dict) -> dict:
    """The two reductions as numbers, and as the source prints them: "2x"."""
    line = {}
    for key, title in zip(("params_reduction", "flops_reduction"), REDUCTIONS):
        text = row[key] if isinstance(row[key], str) and row[key].endswith("x") else None
        line[key] = line[title] = float(text[:-1]) if text else None
        line[f"{title} said"] = text or MISSING
    return line


def levels(layout: Layout, skeleton: pd.DataFrame) -> dict[int, tuple[float, list[dict]]]:
    """Level -> (fraction kept, the paper's own rows there, in its order)."""
    blocks, block = [], []
    for row in skeleton.to_dict("records"):
        if "-" in str(row["row"]):  # of tables 5 and 6 only the kinds of rows are known, on one line of the file
            continue
        block.append(row)
        if row["method"].startswith("GCP"):
            blocks.append(block)
            block = []
    targets = [block[-1]["target_fraction_kept"] for block in blocks]
    targets = [target for target in targets if not pd.isna(target)] + list(layout.chosen)
    blocks += [
        [{"method": method, "status": " ".join(skeleton.status)} for method in layout.methods]
        for _ in range(len(targets) - len(blocks))
    ]
    return {
        level: (target, [_paper_row(row) for row in block])
        for level, (target, block) in enumerate(zip(targets, blocks), 1)
    }


def levels_of(name: str, known: Reference) -> dict[int, float]:
    """Level -> fraction kept, of a table by its name."""
    found = levels(TABLES[name], known.skeleton[known.skeleton.table == int(name[-1])])
    return {level: target for level, (target, _) in found.items()}


def _paper_row(row: dict) -> dict:
    return {
        "Method": row["method"],
        "Source": row["status"],
        **_reductions({key: row.get(key) for key in ("params_reduction", "flops_reduction")}),
        "Top-1 drop": row.get("top1_drop"),
        "Top-5 drop": row.get("top5_drop"),
    }


def _with_base(row: dict, methods: pd.DataFrame, used: set) -> dict:
    """A row of the paper with the accuracies of the published row that it quotes, whose index goes into `used`."""

    def alike(a: Any, b: Any) -> bool:
        return pd.isna(a) and pd.isna(b) or a == b

    keys = ("params_reduction", "flops_reduction", "Top-1 drop", "Top-5 drop")
    if pd.isna(row["Top-5 drop"]):
        return row
    for i, other in methods.iterrows():
        if other.Method.startswith(row["Method"]) and all(alike(row[key], other[key]) for key in keys):
            used.add(i)
            same = ("Base top-1 %", "Base top-5 %", "Top-1 %", "Top-5 %")
            return {**row, **{key: other[key] for key in same}, "Source": other.Source}
    return row


# ---- ours ----------------------------------------------------------------------------------------------------------


def _place(record: dict) -> tuple[str | None, int]:
    """The table and level that a record says it belongs to."""
    paper = (record.get("config") or {}).get("paper") or {}
    return paper.get("table"), paper.get("level", 0)


def _ours(layout: Layout, records: list[dict], targets: dict[int, float]) -> pd.DataFrame:
    """A row per level, scale and method (with every option that tells it from its neighbours): seeds are aggregated.

    A pruned network's drop is from its own dense one; on Caltech-256, where pruned networks are what the training
    starts from, from the record of level 0 of the same scale and seed.
    """
    is_transfer = layout.data == "Caltech-256"
    bases = {
        (record["scale"], record["seed"]): record["stages"]["final"] for record in records if _place(record)[1] == 0
    }
    options = [report.options_of(record) for record in records]
    several = len({o.get("prune.score") for o, record in zip(options, records) if record["method"] == "gcp"}) > 1
    labels = [_label(record, option, layout, targets, several) for record, option in zip(records, options)]
    cells = [(_place(record)[1], record["scale"], label) for record, label in zip(records, labels)]
    varied = report.varying(
        options, cells, lambda key: key.split(".")[0] in ("model", "data", "train", "prune", "finetune", "threads")
    )
    runs = pd.DataFrame(
        [
            {
                "level": level,
                "scale": scale,
                "label": ", ".join((label, *extra)),
                "seed": record["seed"],
                "where": f"{record['model']} on {record['data']}, {_side(record)}",
                **_measured(
                    record["stages"]["final"],
                    bases.get((scale, record["seed"]), {}) if is_transfer else record["stages"]["dense"],
                ),
            }
            for record, (level, scale, label), extra in zip(records, cells, varied)
        ],
        columns=["level", "scale", "label", "seed", "where", *(m.key for m in MEASURES)],
    )
    runs[[m.key for m in MEASURES]] = runs[[m.key for m in MEASURES]].astype(float)
    rows = []
    for (level, scale, label), same in runs.groupby(["level", "scale", "label"], sort=True):
        rows.append(
            {
                "level": level,
                "Method": f"this toolkit: {label}{_mark(scale)}",
                **report.aggregate(same, MEASURES),
                "Seeds": same.seed.nunique(),
                "Source": f"measured: {' and '.join(sorted(set(same['where'])))}",
            }
        )
    return pd.DataFrame(rows, columns=["level", *COLUMNS[1:]])


def _label(record: dict, options: dict, layout: Layout, targets: dict[int, float], several_scores: bool) -> str:
    """The method as its row is called, with the target where that is not the level's."""
    level = _place(record)[1]
    if record["method"] == "none":
        return layout.methods[-1] if level else "Dense"
    label = report.method_name(record, options, several_scores)[1]
    return label if record["target"] == targets.get(level) else f"{label}, target {100 * record['target']:.4g} %"


def _mark(scale: str) -> str:
    """What shows wherever a reduced run does."""
    return "" if scale == "paper" else f" [{scale.upper()} SCALE]"


def _side(record: dict) -> str:
    shape = ((record.get("config") or {}).get("data") or {}).get("input")
    return f"{shape[1]} px" if shape else "size unknown"


def _measured(final: dict, dense: dict) -> dict[str, float | None]:
    """A network's numbers in the paper's terms: reductions are old / new, accuracies percent, drops points.

    Both are stages of records; `dense` is empty where it is not known.
    """

    def over(key: str) -> float | None:
        return dense[key] / final[key] if dense else None

    numbers = {"params_reduction": over("params"), "flops_reduction": over("macs")}
    for key in ("top1", "top5"):
        new, old = final[key], dense.get(key)
        numbers[key] = None if new is None else 100 * new
        numbers[f"base_{key}"] = None if old is None else 100 * old
        numbers[f"{key}_drop"] = None if new is None or old is None else 100 * (old - new)
    return numbers


# ---- captions and figures ------------------------------------------------------------------------------------------


def _caption(name: str, layout: Layout, records: list[dict], n_unplaced: int) -> str:
    counted = COSTS[layout.cost]
    sentences = [
        f"The paper's Table {name[-1]}: {layout.network} on {layout.data}; levels are fractions of the {counted} kept.",
        "Reductions: old / new, FLOPs as multiply-accumulates. Drops: points of accuracy, positive is worse.",
        "Every published method stands on its own base accuracy: compare drops.",
        f"{MISSING}: not published in any text at hand, or not measured.",
    ]
    if layout.chosen:
        sentences.append("Chosen: the paper's level is not published, so one was chosen.")
    if records:
        sentences.append("This toolkit: mean ± sample standard deviation over seeds.")
        sentences += report.scale_sentences({record["scale"] for record in records})
    else:
        sentences.append("This toolkit: no record yet.")
    if n_unplaced:
        sentences.append(f"Left out: {n_unplaced} published rows that do not say their reduction of {counted}.")
    return " ".join(sentences)


def _write_figures(records: list[dict], known: Reference, output: Path) -> list[Path]:
    paths = []
    for stem, place in WIDTHS.items():
        own = [record for record in records if _place(record) == place and record["method"] == "gcp"]
        if own:
            runs = report.run_frame(own)
            paths += figures.write_widths(runs[runs.method != "Dense"], output / stem)
    points = measured_points(records)
    if len(points):
        devices = "; ".join(sorted(set(points.device)))
        paths += figures.figure1(
            pd.concat([known.networks, points], ignore_index=True),
            "ImageNet accuracy against throughput: published networks, and this toolkit's",
            f"Published: {figure1.published_on(known.networks)}. This toolkit's: {devices}. Speeds compare on one "
            "device only.",
            output / "figure1",
        )
    return paths


def measured_points(records: list[dict]) -> pd.DataFrame:
    """Our networks as points of Figure 1: those tested on ImageNet's images and timed; seeds are joined."""
    rows = []
    for record in records:
        final, name = record["stages"]["final"], _place(record)[0]
        if name in (None, "table6") or record["data"] != "imagenet" or not final["throughput"] or final["top1"] is None:
            continue
        label = report.method_name(record, report.options_of(record), False)[1]
        target = "" if record["method"] == "none" else f" {100 * record['target']:.4g} %"
        speed, device = final["throughput"]["images_per_second"], report.device_of(record)
        rows.append((f"{record['model']}: {label}{target}{_mark(record['scale'])}", device, 100 * final["top1"], speed))
    frame = pd.DataFrame(rows, columns=["name", "device", "top1", "images_per_second"])
    frame = frame.groupby(["name", "device"], as_index=False, sort=True).agg(
        {"top1": "mean", "images_per_second": "median"}
    )
    return frame.assign(base=None, kind=figures.OURS)

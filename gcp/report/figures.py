"""A frame of runs in, figures (PNG, SVG) out: accuracy against throughput and cost, width kept per layer.

The figures follow the paper's Figure 1 (accuracy against throughput) and Figures 2 and 3 (width kept per layer).
Frames are those of `gcp.report.run_frame`.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.lines import Line2D
from matplotlib.path import Path as Curve
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator
from matplotlib.transforms import Bbox

from gcp.report.tables import MISSING

# Okabe and Ito's colour-blind-safe colours, without the yellow that vanishes on white.
COLOURS = {
    "GCP-f": "#0072B2",
    "GCP-p": "#D55E00",
    "GCP-latency": "#CC79A7",
    "Uniform (L1)": "#E69F00",
    "Uniform (random)": "#009E73",
}
OTHER_COLOURS = ("#56B4E9", "#000000", "#8C564B", "#7F7F7F")
MARKERS = "osD^vPX<>"
DASHES = ("-", (0, (5, 2)), (0, (2, 1.5)), (0, (5, 1.5, 1, 1.5)))
INK, FAINT = "#222222", "#8a8a8a"
FONT = 9.0  # points; the smallest text in a figure is one less

OBJECTIVES = {"macs": "MACs", "params": "Params", "latency": "Latency"}

PRUNENET, RESNET, MOBILENETS, OTHER = "PruneNet", "Base ResNet", ("MobileNet", "MobileNetV2"), "Other GluonCV network"
OURS = "This toolkit, measured"
KINDS = {
    PRUNENET: {"color": "#D55E00", "marker": "o"},
    RESNET: {"color": INK, "marker": "s"},
    MOBILENETS[0]: {"color": "#0072B2", "marker": "^"},
    MOBILENETS[1]: {"color": "#009E73", "marker": "v"},
    OTHER: {"color": "#b5b5b5", "marker": "o"},
    OURS: {"color": "#CC79A7", "marker": "D"},
}


def write(runs: pd.DataFrame, output: Path) -> list[Path]:
    """Draw every figure that the runs have something for; returns the paths."""
    paths = []
    with _style():
        # A network that nothing was pruned from is a point of Figure 1, and no panel of its own.
        pruned = runs[runs.groupby("setting").method.transform(lambda methods: (methods != "Dense").any())]
        paths += _save(accuracy_throughput(pruned if len(pruned) else runs), output / "accuracy_throughput")
        paths += _save(accuracy_cost(pruned if len(pruned) else runs), output / "accuracy_cost")
        for (data, scale, device), some in runs[runs.images_per_second.notna()].groupby(["data", "scale", "device"]):
            if some.model.nunique() > 1:
                networks, kinds = means(some)
                paths += figure1(
                    networks,
                    f"Accuracy against throughput on {data}"
                    + ("" if scale == "paper" else f"   [{scale.upper()} SCALE]"),
                    f"Our own Figure 1. Means over seeds; throughput: {device}. A line runs from each network through "
                    "what a method made of it.",
                    output / "figure1",
                    kinds,
                    "Test top-1 accuracy (%)",
                )
        for (objective, target), some in runs[runs.method != "Dense"].groupby(["objective", "target"], sort=True):
            paths += _save(widths(some), output / f"widths_{objective}_{target:g}")
    return paths


def write_widths(runs: pd.DataFrame, stem: Path) -> list[Path]:
    """Draw the width kept per layer of some runs as `<stem>.png` and `.svg`; returns the paths, if there is any."""
    with _style():
        return _save(widths(runs), stem)


def _style():
    """The look of all figures, while it lasts."""
    return matplotlib.rc_context(
        {
            "font.size": FONT,
            "font.family": "DejaVu Sans",
            "svg.hashsalt": "gcp",
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.edgecolor": FAINT,
            "text.color": INK,
            "axes.labelcolor": INK,
            "axes.axisbelow": True,
        }
    )


def in_order(runs: pd.DataFrame) -> pd.DataFrame:
    """Runs as tables and legends list them: by setting, objective, target, method, label and seed."""
    rank = {"Dense": 0, **{name: i + 1 for i, name in enumerate(COLOURS)}}
    return runs.assign(
        _rank=runs.method.map(lambda m: rank.get(m, len(rank))),
        _down=-runs.target,
        _objective=runs.objective.fillna(""),
    ).sort_values(["setting", "_objective", "_down", "_rank", "label", "seed"], na_position="first", kind="stable")


def accuracy_throughput(runs: pd.DataFrame) -> Figure | None:
    """Top-1 against images per second (the paper's Figure 1), one panel per setting and device."""
    runs = runs[runs.images_per_second.notna() & runs.top1.notna()]
    panels = [(setting, device, some) for (setting, device), some in runs.groupby(["setting", "device"])]
    if not panels:
        return None
    figure, axes, margin = _canvas(len(panels), 1, 5.6, 3.9, runs.label)
    for (setting, device, some), (ax,) in zip(panels, axes):
        _accuracy_panel(ax, some, "images_per_second", "Throughput (images/s)", margin)
        _title(ax, setting, f"Throughput: {device}" if device else "", margin)
    return figure


def accuracy_cost(runs: pd.DataFrame) -> Figure | None:
    """Top-1 against MACs kept and against params kept, two panels per setting; smaller is to the right."""
    runs = runs[runs.top1.notna()]
    settings = list(runs.groupby("setting"))
    if not settings or runs[["macs_kept", "params_kept"]].isna().all(axis=None):
        return None
    figure, axes, margin = _canvas(len(settings), 2, 4.6, 3.9, runs.label)
    for (setting, some), row in zip(settings, axes):
        for ax, key, name in zip(row, ("macs_kept", "params_kept"), ("MACs", "Parameters")):
            _accuracy_panel(ax, some[some[key].notna()], key, f"{name} kept (%)", margin)
            ax.set_xlim(*sorted(ax.get_xlim(), reverse=True))  # harder pruned to the right, as in the throughput figure
        for ax in row:
            _label_points(ax)
        _title(row[0], setting, "Test accuracy of each seed (faint) and their mean (solid).", margin)
    return figure


def widths(runs: pd.DataFrame) -> Figure | None:
    """Percent of channels kept per group at one objective and target (the paper's Figures 2 and 3)."""
    runs = runs[runs.kept.map(lambda kept: isinstance(kept, dict) and len(kept) > 0)]
    settings = list(runs.groupby("setting"))
    if not settings:
        return None
    names = {setting: list(dict.fromkeys(g for kept in some.kept for g in kept)) for setting, some in settings}
    longest = max(len(f"{group} (1024)") for groups in names.values() for group in groups)
    width = min(16.0, max(6.5, 0.24 * max(map(len, names.values()))))
    figure, axes, margin = _canvas(len(settings), 1, width, 3.4, runs.label, below=0.5 + 0.068 * longest)
    for (setting, some), (ax,) in zip(settings, axes):
        groups, n_channels = names[setting], some.n_channels.iloc[0]
        ends = []
        styles = _styles(some)
        for label, same in in_order(some).groupby("label", sort=False):
            style = styles[label]
            each = pd.DataFrame(list(same.kept), columns=groups)
            for values in each.to_numpy():
                _faint(ax, range(len(groups)), values, style, 3.5)
            mean = each.mean()
            ax.plot(range(len(groups)), mean, markersize=4.5, linewidth=1.5, **style)
            ends.append((len(groups) - 1, mean.iloc[-1], label, style))
        ax.set_ylim(0, 1.08 * min(100.0, max(max(kept.values()) for kept in some.kept)))
        ax.set_xlim(-0.5, len(groups) - 0.5)
        ax.set_xticks(range(len(groups)))
        ax.set_xticklabels(
            [f"{group} ({n_channels.get(group, MISSING)})" for group in groups], rotation=90, fontsize=FONT - 1
        )
        ax.set_xlabel("Group of channels (dense width)")
        ax.set_ylabel("Width kept (%)")
        ax.grid(axis="y", color="#e4e4e4", linewidth=0.8)
        ax.grid(axis="x", color="#f1f1f1", linewidth=0.8)
        objective, target = some.objective.iloc[0], some.target.iloc[0]
        _title(
            ax,
            setting,
            f"Width kept per group at {100 * target:g} % of the {OBJECTIVES.get(objective, objective)}; "
            "each seed (faint) and their mean (solid).",
            margin,
        )
        ax.gcp_ends = ends
        _label_points(ax)
    return figure


def predictions(result: dict, output: Path) -> list[Path]:
    """Predicted against measured latency of held-out networks, one panel per model; `result` is `latency.validate`'s.

    Writes `<output>.png` and `.svg`; returns the paths.
    """
    with _style():
        measured = [1e3 * s for s in result["measured_s"]]
        predicted = {name: [1e3 * s for s in values] for name, values in result["predicted_s"].items()}
        everything = measured + [v for values in predicted.values() for v in values if v > 0]
        low, high = min(everything) / 1.15, max(everything) * 1.15
        figure = Figure(figsize=(2.75 * len(predicted) + 0.5, 3.75))
        FigureCanvasAgg(figure)
        for k, (name, values) in enumerate(predicted.items()):
            ax = figure.add_axes(((0.6 + 2.75 * k) / figure.get_figwidth(), 0.14, 2.25 / figure.get_figwidth(), 0.6))
            ax.plot([low, high], [low, high], color=FAINT, linewidth=1.0, linestyle=(0, (4, 3)))
            ax.plot(
                measured,
                values,
                linestyle="none",
                marker="o",
                markersize=4,
                alpha=0.6,
                markeredgewidth=0,
                color=COLOURS["GCP-f"],
            )
            good = result["quality"][name]
            ax.set_title(f"{name}: NRMSE {100 * good['nrmse']:.1f} %, tau {good['tau']:.3f}", fontsize=FONT, loc="left")
            for axis in (ax.xaxis, ax.yaxis):
                axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.4g}"))
            ax.set_xlim(low, high)
            ax.set_ylim(low, high)
            ax.set_xlabel("Measured (ms)")
            if k == 0:
                ax.set_ylabel("Predicted (ms)")
            ax.grid(color="#e8e8e8", linewidth=0.8)
        setup = result["setup"]
        shape = "x".join(map(str, result["input"]))
        figure.text(
            0.08 / figure.get_figwidth(),
            0.93,
            f"{result['network']} at {shape}: {len(measured)} networks that were not fitted",
            fontsize=FONT + 2,
            fontweight="bold",
        )
        figure.text(
            0.08 / figure.get_figwidth(),
            0.86,
            f"{setup['runtime']} on {result['hardware']['cpu']}, "
            f"{setup['dtype']}, batch {setup['batch']}, {setup['threads']} "
            f"thread{'s' * (setup['threads'] != 1)}; fitted to {result['n_samples']} others",
            fontsize=FONT,
            color="#555555",
        )
        return _save(figure, output)


def means(runs: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, dict]]:
    """Runs on one data set as networks for `figure1`, and their kinds: what each dense network or method came to.

    Means over seeds, of throughput the median. Dense networks are named; a method's networks are named by their target
    and chained to the network that they come from.
    """
    rows, kinds = [], {}
    for setting, some in in_order(runs).groupby("setting", sort=False):
        model, styles = setting[1], _styles(some)
        for (label, _, target), same in some.groupby(["label", "objective", "target"], sort=False, dropna=False):
            dense = same.method.iloc[0] == "Dense"
            family = re.match("[a-z]*", model)[0]
            kind = f"Dense: {family}" if dense else label
            number = sum(name.startswith("Dense: ") for name in kinds)
            kinds.setdefault(
                kind,
                {"color": INK, "marker": "sP*X"[number % 4]}
                if dense
                else {key: styles[label][key] for key in ("color", "marker")},
            )
            by_seed = same.groupby("seed", dropna=False)[["images_per_second", "top1"]].median()
            point = {"kind": kind, "top1": by_seed.top1.mean(), "images_per_second": by_seed.images_per_second.median()}
            if not dense:
                rows.append({**point, "name": f"{100 * target:g} %", "chain": f"{model} {label}"})
                continue
            methods = some[some.method != "Dense"].label.unique()
            rows.append({**point, "name": model, "chain": None})
            # Once more for each method's line to start from; without a name, it adds nothing to see.
            rows += [{**point, "name": None, "chain": f"{model} {method}"} for method in methods]
    return pd.DataFrame(rows).dropna(subset=["top1", "images_per_second"]).reset_index(drop=True), kinds


def figure1(
    networks: pd.DataFrame,
    title: str,
    subtitle: str,
    stem: Path,
    kinds: Mapping[str, dict] = KINDS,
    quantity: str = "ImageNet top-1 accuracy (%)",
) -> list[Path]:
    """Accuracy against throughput of whole networks (the paper's Figure 1); writes `<stem>.png` and `.svg`.

    `networks`: `name` (None: not written), `kind` (one of `kinds`), `chain` (networks of one chain are joined, slowest
    first; None: of none), `top1` in percent and `images_per_second`. `OTHER` networks are drawn faintly and not named.
    Returns the paths.
    """
    with _style():
        figure = Figure(figsize=(9.2, 6.4))
        FigureCanvasAgg(figure)
        ax = figure.add_axes((0.065, 0.085, 0.92, 0.785))
        for kind, style in kinds.items():
            some = networks[networks.kind == kind]
            if len(some):
                ax.plot(
                    some.images_per_second,
                    some.top1,
                    linestyle="none",
                    label=kind,
                    markeredgewidth=0,
                    markersize=4.5 if kind == OTHER else 7,
                    zorder=2 if kind == OTHER else 4,
                    **style,
                )
        chains = []
        for _, chain in networks.sort_values("images_per_second", kind="stable").groupby("chain"):
            chains += ax.plot(
                chain.images_per_second, chain.top1, color=kinds[chain.kind.iloc[-1]]["color"], linewidth=1.2, zorder=3
            )
        front = pareto(networks)
        # Corners: up to each network's speed, its accuracy can be had.
        (edge,) = ax.plot(
            front.images_per_second.repeat(2)[:-1],
            front.top1.repeat(2)[1:],
            color=FAINT,
            linewidth=0.9,
            linestyle=DASHES[1],
            zorder=1,
            label="Pareto front",
        )
        ax.set_xscale("log")
        slowest, fastest = networks.images_per_second.min(), networks.images_per_second.max()
        span = max(fastest / slowest, 2.0)
        ax.set_xlim(slowest / span**0.06, fastest * span**0.18)  # names are mostly right of their points
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
        ax.margins(y=0.06)
        ax.set_ylim(*ax.get_ylim())  # names are placed by it: what is drawn after must not move it
        ax.set_xlabel("Throughput (images/s), log scale")
        ax.set_ylabel(quantity)
        ax.grid(color="#ececec", linewidth=0.8)
        legend = ax.legend(loc="lower left", frameon=False)
        _name_points(ax, networks, kinds, chains, edge, legend)
        figure.text(0.02, 0.955, title, fontsize=FONT + 2, fontweight="bold")
        figure.text(0.02, 0.94, textwrap.fill(subtitle, 128), fontsize=FONT, color="#555555", va="top", linespacing=1.4)
        return _save(figure, stem)


def _accuracy_panel(ax: Axes, runs: pd.DataFrame, key: str, label: str, margin: float) -> None:
    """One curve per method in the order of its MACs: seeds faint, their mean (median throughput) solid."""
    centre = "median" if key == "images_per_second" else "mean"
    styles, ends = _styles(runs), []
    for name, same in in_order(runs).groupby("label", sort=False):
        if same.method.iloc[0] == "Dense":
            # One point a seed: the dense network is shared by many runs, each with its own timing of it.
            seeds = same.groupby("seed", dropna=False)[[key, "top1"]].median()
            x, y = seeds[key].agg(centre), seeds.top1.mean()
            ax.axhline(y, color=FAINT, linewidth=1.0, linestyle=(0, (4, 3)), zorder=1)
            _faint(ax, seeds[key], seeds.top1, {"color": INK, "marker": "o"}, 4)
            ax.plot([x], [y], "*", color=INK, markersize=10, zorder=4)
            ends.append((None, y, name, {"color": INK, "marker": "*", "linestyle": "-"}))
            continue
        style = styles[name]
        _faint(ax, same[key], same.top1, style, 4)
        points = (
            same.groupby(["objective", "target"], dropna=False)
            .agg(x=(key, centre), y=("top1", "mean"), macs=("macs_kept", "mean"))
            .sort_values("macs", ascending=False)
        )
        ax.plot(points.x, points.y, markersize=6, linewidth=1.5, zorder=3, **style)
        ends.append((points.x.iloc[-1], points.y.iloc[-1], name, style))
    values = runs[key].dropna()
    values = values[values > 0]
    if len(values) and values.max() / values.min() > 5:
        ax.set_xscale("log")
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_minor_formatter(NullFormatter())
        label += ", log scale"
        ax.set_xlim(values.min() / 1.25, values.max() * 1.25)
    else:
        ax.margins(x=0.08)
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
    ax.set_xlabel(label)
    ax.set_ylabel("Top-1 accuracy (%)")
    ax.grid(color="#e8e8e8", linewidth=0.8)
    ax.gcp_ends = ends
    if key == "images_per_second":
        _label_points(ax)


def _faint(ax: Axes, x, y, style: dict, size: float) -> None:
    """Points of single seeds, behind their mean."""
    ax.plot(
        x,
        y,
        linestyle="none",
        marker=style["marker"],
        color=style["color"],
        markersize=size,
        alpha=0.3,
        markeredgewidth=0,
    )


def _styles(runs: pd.DataFrame) -> dict[str, dict]:
    """Label -> colour of its method, marker and dashes of its variant."""
    styles: dict[str, dict] = {}
    others = [m for m in dict.fromkeys(in_order(runs).method) if m not in COLOURS and m != "Dense"]
    for method, same in in_order(runs).groupby("method", sort=False):
        colour = COLOURS.get(method) or (
            INK if method == "Dense" else OTHER_COLOURS[others.index(method) % len(OTHER_COLOURS)]
        )
        # The plain method first: its variants' labels are longer.
        for i, label in enumerate(sorted(set(same.label), key=lambda text: (len(text), text))):
            styles[label] = {"color": colour, "marker": MARKERS[i % len(MARKERS)], "linestyle": DASHES[i % len(DASHES)]}
    return styles


def _canvas(
    n_rows: int, n_columns: int, width: float, height: float, labels: Iterable[str], below: float = 0.6
) -> tuple[Figure, list[list[Axes]], float]:
    """Axes of `width` x `height` inches, each with a column for direct labels to its right.

    Returns the figure, its axes by row, and the width in inches of one panel with its labels.
    """
    left, above = 0.75, 0.72
    right = 0.4 + 0.075 * max(len(label) for label in labels)
    size = (n_columns * (left + width + right), n_rows * (below + height + above))
    figure = Figure(figsize=size)
    FigureCanvasAgg(figure)
    axes = [
        [
            figure.add_axes(
                (
                    (column * (left + width + right) + left) / size[0],
                    ((n_rows - 1 - row) * (below + height + above) + below) / size[1],
                    width / size[0],
                    height / size[1],
                )
            )
            for column in range(n_columns)
        ]
        for row in range(n_rows)
    ]
    return figure, axes, left + width + right


def _title(ax: Axes, setting: tuple, subtitle: str, width: float) -> None:
    scale = "" if setting[2] == "paper" else f"   [{setting[2].upper()} SCALE]"
    options = f" ({', '.join(setting[3])})" if setting[3] else ""
    ax.annotate(
        f"{setting[1]} on {setting[0]}{options}{scale}",
        (0, 1),
        (-40, 26),
        xycoords="axes fraction",
        textcoords="offset points",
        fontsize=FONT + 2,
        fontweight="bold",
        annotation_clip=False,
    )
    ax.annotate(
        subtitle,
        (0, 1),
        (-40, 12),
        xycoords="axes fraction",
        textcoords="offset points",
        fontsize=FONT,
        color="#555555",
        annotation_clip=False,
    )


def _label_points(ax: Axes) -> None:
    """Name each curve right of the panel, level with its last point or as near as the neighbours allow."""
    ends = ax.gcp_ends
    height = ax.get_position().height * ax.figure.get_figheight() * 72  # points
    gap = 1.45 * FONT / height
    ends = sorted(ends, key=lambda end: -end[1])
    column = 1 + 0.15 / (ax.get_position().width * ax.figure.get_figwidth())  # 0.15 inches right of the panel
    to_axes = ax.transData + ax.transAxes.inverted()
    wanted = [to_axes.transform((ax.get_xlim()[0] if x is None else x, y))[1] for x, y, _, _ in ends]
    for (x, y, text, style), level in zip(ends, _spread(wanted, gap)):
        if x is None:  # a reference line: it reaches the panel's edge
            x = ax.get_xlim()[1]
        ax.annotate(
            "",
            (x, y),
            (column, level),
            xycoords="data",
            textcoords="axes fraction",
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": style["color"],
                "linewidth": 0.7,
                "alpha": 0.55,
                "shrinkA": 0,
                "shrinkB": 0,
            },
        )
        ax.plot(
            [column],
            [level],
            transform=ax.transAxes,
            clip_on=False,
            color=style["color"],
            marker=style["marker"],
            markersize=8 if style["marker"] == "*" else 5,
        )
        ax.annotate(
            text,
            (column, level),
            (7, 0),
            xycoords="axes fraction",
            textcoords="offset points",
            va="center",
            annotation_clip=False,
        )


def _spread(wanted: list[float], gap: float) -> list[float]:
    """Levels in falling order, `gap` apart or more, near the wanted ones: clusters stay centred."""
    clusters: list[list[float]] = []  # [sum of centres wanted for the first of the cluster, count]
    for level in wanted:
        clusters.append([level, 1])
        while len(clusters) > 1:
            (a, n), (b, m) = clusters[-2:]
            if a / n - n * gap >= b / m:
                break
            clusters[-2:] = [[a + b + m * n * gap, n + m]]
    levels = [total / count - i * gap for total, count in clusters for i in range(int(count))]
    return levels


def pareto(networks: pd.DataFrame) -> pd.DataFrame:
    """The networks that no other beats in both `top1` and `images_per_second`, slowest first."""
    ordered = networks.sort_values(["images_per_second", "top1"], ascending=False, kind="stable")
    best = ordered.top1.cummax().shift(fill_value=float("-inf"))
    return ordered[ordered.top1 > best].iloc[::-1]


class _Place(NamedTuple):
    """Where a point's name could stand: distance and offset from the point (points), box and leader (pixels)."""

    far: float
    offset: tuple[float, float]
    box: Bbox
    leader: Curve | None


def _name_points(
    ax: Axes, networks: pd.DataFrame, kinds: Mapping[str, dict], chains: list[Line2D], edge: Line2D, legend: Legend
) -> None:
    """Write names (not the other networks') beside their points, where they cover least and cannot be mistaken."""
    renderer = ax.figure.canvas.get_renderer()
    point = renderer.points_to_pixels(1.0)
    panel, key = ax.get_window_extent(renderer), legend.get_window_extent(renderer)
    centres = ax.transData.transform(networks[["images_per_second", "top1"]].to_numpy(float))
    sizes = networks.kind.map(lambda kind: (2.5 if kind == OTHER else 4) * point)
    dots = [Bbox.from_extents(x - r, y - r, x + r, y + r) for (x, y), r in zip(centres, sizes)]
    dashed, *solid = (ax.transData.transform_path(line.get_path()) for line in [edge, *chains])
    texts = {}
    for i, network in enumerate(networks.itertuples()):
        if network.kind != OTHER and network.name is not None:
            texts[i] = ax.annotate(
                network.name,
                (network.images_per_second, network.top1),
                (0, 0),
                va="center",
                textcoords="offset points",
                fontsize=FONT - 1,
                zorder=5,
                color=kinds[network.kind]["color"],
            )
    chosen: dict[int, _Place] = {}

    def places(i: int) -> Iterator[_Place]:
        size = texts[i].get_window_extent(renderer)
        for far in (6, 10, 16, 24, 34, 46):
            for side, rise in ((1, 0), (-1, 0), (1, 0.7), (-1, 0.7), (1, -0.7), (-1, -0.7), (0, 1), (0, -1)):
                dx = side * far * (1 if rise == 0 else 0.7) + (side - 1) / 2 * size.width / point
                dy = rise * (far + FONT / 2)
                x, y = centres[i][0] + dx * point, centres[i][1] + dy * point
                box = Bbox.from_extents(x, y - size.height / 2, x + size.width, y + size.height / 2)
                leader = None
                if far > 10:  # far enough for a reader to ask whose name it is
                    end = np.clip(centres[i], box.min, box.max)
                    start = centres[i] + 5 * point * (end - centres[i]) / np.hypot(*(end - centres[i]))
                    leader = Curve([start, end])
                yield _Place(far, (dx, dy), box, leader)

    def cost(place: _Place, own: int) -> float:
        """Of a name at this place, by what a reader minds most."""
        box, leader = place.box, place.leader
        if not (panel.x0 <= box.x0 and box.x1 <= panel.x1 and panel.y0 <= box.y0 and box.y1 <= panel.y1):
            return 1e6
        neighbours = [other for i, other in chosen.items() if i != own]
        taken = [key, *(other.box.padded(1.5 * point) for other in neighbours)]
        lines = [*solid, *(other.leader for other in neighbours if other.leader)]
        others = [dot for i, dot in enumerate(dots) if i != own]
        names = sum(box.overlaps(other) for other in taken)
        covered, near = (area.count_overlaps(others) for area in (box, box.padded(4 * point)))
        crossed = sum(line.intersects_bbox(box, filled=False) for line in lines)
        if leader is not None:
            names += sum(leader.intersects_bbox(other, filled=False) for other in taken)
            covered += sum(leader.intersects_bbox(dot, filled=False) for dot in others)
            crossed += sum(line.intersects_path(leader, filled=False) for line in lines)
        struck = dashed.intersects_bbox(box, filled=False)
        return 1000 * names + 100 * covered + 40 * crossed + 25 * struck + 10 * near + place.far

    for i in 3 * list(texts):  # three times: the first names stand where they did not know of the others
        least = np.inf
        for place in places(i):
            if least <= place.far:  # the nearest come first, and no cost is below the distance
                break
            value = cost(place, i)
            if value < least:
                least, best = value, place
        chosen[i] = best
    for i, place in chosen.items():
        texts[i].set_position(place.offset)
        if place.leader is not None:
            ends = ax.transData.inverted().transform(place.leader.vertices)
            ax.plot(ends[:, 0], ends[:, 1], linewidth=0.6, alpha=0.6, color=texts[i].get_color(), zorder=1)


def _save(figure: Figure | None, stem: Path) -> list[Path]:
    if figure is None:
        return []
    paths = [stem.parent / (stem.name + suffix) for suffix in (".png", ".svg")]  # with_suffix would cut "0.05"
    figure.savefig(paths[0], dpi=150, metadata={"Software": None})
    figure.savefig(paths[1], metadata={"Date": None, "Creator": None})
    return paths

"""Figures (PNG, SVG) from a frame of runs: accuracy against throughput and cost, and the width kept per layer.

The figures follow the paper's Figure 1 (accuracy against throughput) and Figures 2 and 3 (width kept per layer). Frames
are those of `gcp.report.frame.frame`.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
from matplotlib.transforms import Bbox
from scipy import optimize, stats

from gcp.cost.base import local_minima
from gcp.cost.latency import Validation
from gcp.graph.channels import layer_name
from gcp.report.frame import cost_label, in_order
from gcp.report.tables import setup_of

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
FONT = 9.0  # points; the smallest text in a figure is one point less
NAMES_APART = 0.1  # gap between names of lines, as a fraction of a name's height
NAME_WIDTH = 48  # characters of a line's name before it is wrapped: names take space from the panel
LOOK = {
    "font.size": FONT,
    "font.family": "DejaVu Sans",
    "svg.hashsalt": "gcp",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": FAINT,
    "axes.grid": True,
    "grid.color": "#e8e8e8",
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.axisbelow": True,
    "text.parse_math": False,  # names can contain dollars
}
# Limits adjustText by iterations, not by time, so that the same points give the same figure on every machine.
MOVES = {"iter_lim": 100, "prevent_crossings": False}

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
    """Draw every figure for which the runs have data, and return the paths.

    Files: accuracy_cost, accuracy_throughput, accuracy_latency if budgets are measured times, one
    widths_<objective>_<target> per target, and, if there are several models, one figure1_<data>_<scale>_<device> per
    data set, scale and device. The same runs give the same bytes.
    """
    # A network that was never pruned is a point of Figure 1, but gets no panel of its own.
    pruned = runs[runs.groupby("setting").method.transform(lambda methods: (methods != "Dense").any())]
    pruned = pruned if len(pruned) else runs
    paths = save(accuracy_throughput(pruned), output / "accuracy_throughput")
    paths += save(accuracy_cost(pruned), output / "accuracy_cost")
    paths += save(accuracy_latency(pruned), output / "accuracy_latency")
    for (data, scale, device), some in runs[runs.images_per_second.notna()].groupby(["data", "scale", "device"]):
        if some.model.nunique() > 1:
            figure = figure1(
                *networks_of(some),
                f"Accuracy against throughput on {data}{mark(scale)}",
                f"Our own Figure 1. Means over seeds; throughput: {device}. A line runs from each network through "
                "what a method made of it.",
                "Test top-1 accuracy (%)",
            )
            name = re.sub(r"[^\w.]+", "-", f"figure1_{data}_{scale}_{device}").strip("-").lower()
            paths += save(figure, output / name)
    for (objective, target), some in runs[runs.method != "Dense"].groupby(["objective", "target"], sort=True):
        paths += save(widths(some), output / f"widths_{objective}_{target:g}")
    return paths


@matplotlib.rc_context(LOOK)
def save(figure: Figure | None, stem: Path) -> list[Path]:
    """Write a figure as <stem>.png and .svg, the same bytes for the same figure, and return the paths."""
    if figure is None:
        return []
    paths = [stem.with_name(stem.name + suffix) for suffix in (".png", ".svg")]  # with_suffix would cut "0.05"
    figure.savefig(paths[0], dpi=150, bbox_inches="tight", metadata={"Software": None})
    figure.savefig(paths[1], bbox_inches="tight", metadata={"Date": None, "Creator": None})
    return paths


def mark(scale: str) -> str:
    """The mark shown with every run that is not at the paper's scale; "" at that scale."""
    return "" if scale == "paper" else f" [{scale.upper()} SCALE]"


# ---- figures of runs -----------------------------------------------------------------------------------------------


def accuracy_throughput(runs: pd.DataFrame) -> Figure | None:
    """Top-1 against images per second (the paper's Figure 1), one panel per setting and device."""
    panels = runs[runs.images_per_second.notna()].groupby(["setting", "device"])
    rows = [(setting, some, f"Throughput: {device}" if device else "") for (setting, device), some in panels]
    return _accuracy_figure(rows, {"images_per_second": "Throughput (images/s)"}, 9.0)


def accuracy_cost(runs: pd.DataFrame) -> Figure | None:
    """Top-1 against MACs kept and against parameters kept, two panels per setting; smaller networks to the right."""
    note = "Test accuracy of each seed (faint) and their mean (solid)."
    rows = [(setting, some, note) for setting, some in runs.groupby("setting")]
    return _accuracy_figure(rows, {"macs_kept": "MACs kept (%)", "params_kept": "Parameters kept (%)"}, 8.0)


def accuracy_latency(runs: pd.DataFrame) -> Figure | None:
    """Top-1 against measured milliseconds, one panel per setting, for runs whose budget is a measured time.

    The ratio of a network's latency to the dense one's is known more precisely than either latency at any one time, so
    it is the ratio that is drawn, in milliseconds of the dense network's median.
    """
    rows = []
    for setting, some in runs[runs.dense_ms.notna()].groupby("setting"):
        whole = some.dense_ms.median()
        note = f"Measured in turns with the dense network, which takes {whole:.3g} ms; each seed (faint), mean (solid)."
        rows.append((setting, some.assign(latency_ms=some.latency_kept / 100 * whole), note))
    return _accuracy_figure(rows, {"latency_ms": "Latency (ms)"}, 9.0)


@matplotlib.rc_context(LOOK)
def widths(runs: pd.DataFrame) -> Figure | None:
    """Percent of channels kept per group at one objective and target (the paper's Figures 2 and 3)."""
    settings = list(runs[runs.method != "Dense"].groupby("setting"))
    if not settings:
        return None
    settings = [(setting, some) for setting, some in settings if len(some.n_channels.iloc[0])]
    if not settings:
        return None
    n_groups = max(len(some.n_channels.iloc[0]) for _, some in settings)
    figure, axes = _panels(len(settings), 1, min(18.0, max(9.5, 3 + 0.24 * n_groups)), 5.2)
    for (setting, some), ax in zip(settings, axes[:, 0]):
        n_channels, styles = some.n_channels.iloc[0], _styles(some.assign(line=some.label))
        for label, same in in_order(some).groupby("label", sort=False):
            each = pd.DataFrame(list(same.kept), columns=list(n_channels))
            for values in each.to_numpy():
                _faint(ax, range(len(n_channels)), values, styles[label], 3.5)
            ax.plot(range(len(n_channels)), each.mean(), markersize=4.5, linewidth=1.5, label=label, **styles[label])
        ax.set_ylim(0, 1.08 * max(max(kept.values()) for kept in some.kept))  # a search can widen groups
        ax.set_xlim(-0.5, len(n_channels) - 0.5)
        groups = [f"{group} ({n})" for group, n in n_channels.items()]
        ax.set_xticks(range(len(groups)), groups, rotation=90, fontsize=FONT - 1)
        ax.set_xlabel("Group of channels (dense width)")
        ax.set_ylabel("Width kept (%)")
        what = f"{100 * some.target.iloc[0]:g} % of the {cost_label(some.objective.iloc[0])}"
        _title(ax, _whose(setting), f"Width kept per group at {what}; each seed (faint) and their mean (solid).")
    return _name_lines(figure)


def points(runs: pd.DataFrame, key: str) -> pd.DataFrame:
    """For each seed, the accuracy `y` against `x`, a column of the frame; `line` tells which points belong together.

    A line is one method at one objective, named after both if the method has several objectives: points of two
    objectives are never joined. The dense network, which many runs share, is one point per seed.
    """
    several = runs.groupby(["setting", "label"]).objective.transform("nunique") > 1
    both = runs.label + " (" + runs.objective.map(cost_label) + ")"
    named = in_order(runs.assign(line=runs.label.where(~several, both)))
    of_seed = named.groupby(["line", "method", "target", "seed"], dropna=False, sort=False)[[key, "top1"]].median()
    return of_seed.set_axis(["x", "y"], axis=1).dropna().reset_index()


def joined(points: pd.DataFrame, median: bool) -> pd.DataFrame:
    """The points aggregated over seeds and sorted by x: y by its mean, x by its mean or, if `median`, its median."""
    cells = points.groupby(["line", "method", "target"], dropna=False, sort=False)
    means = pd.DataFrame({"x": cells.x.median() if median else cells.x.mean(), "y": cells.y.mean()})
    return means.reset_index().sort_values("x", kind="stable")


@matplotlib.rc_context(LOOK)
def _accuracy_figure(rows: Sequence[tuple], columns: Mapping[str, str], width: float) -> Figure | None:
    """A row of panels for each (setting, its runs, subtitle), with accuracy against each of the named columns.

    Each panel has a line per method and objective: seeds are faint, their mean (median for throughput) is solid.
    """
    if not rows:
        return None
    figure, axes = _panels(len(rows), len(columns), width, 5.0)
    for (setting, runs, subtitle), panels in zip(rows, axes):
        for ax, (key, label) in zip(panels, columns.items()):
            timed, seeds = key == "images_per_second", points(runs, key)
            styles, means = _styles(seeds), joined(seeds, timed)
            for line, same in seeds.groupby("line", sort=False):
                mean = means[means.line == line].iloc[:: 1 if timed else -1]  # the most heavily pruned is last
                _faint(ax, same.x, same.y, styles[line], 4)
                ax.plot(mean.x, mean.y, linewidth=1.5, zorder=3, label=line, **{"markersize": 6, **styles[line]})
                if same.method.iloc[0] == "Dense":
                    ax.lines[-1].set_label("")
                    level = {"linewidth": 1.0, "linestyle": (0, (4, 3)), "zorder": 1, "color": FAINT}
                    ax.axhline(mean.y.iloc[0], label=line, **level)
            low, high = seeds.x.min(), seeds.x.max()
            ax.margins(x=0.08)
            _axes(ax, label, "Top-1 accuracy (%)", *((low / 1.25, high * 1.25) if high > 5 * low > 0 else ()))
            if not timed:
                ax.invert_xaxis()  # more heavily pruned to the right, as in the throughput figure
        _title(panels[0], _whose(setting), subtitle)
    return _name_lines(figure)


@matplotlib.rc_context(LOOK)
def front(rows: Sequence[dict]) -> Figure:
    """Accuracy against the cost kept, without training, from rows of `compress.explore`."""
    figure, [[ax]] = _panels(1, 1, 8.0, 5.0)
    cost, whole = cost_label(rows[0]["cost"]), 100 * rows[0]["top1_fitted"]
    x = [100 * row["cost_kept"] for row in rows]
    for key, label, style in (
        ("top1_fitted", "Weights by least squares", {"color": "#0072B2", "marker": "o"}),
        ("top1_statistics", "Statistics recomputed", {"color": "#E69F00", "marker": "s"}),
    ):
        ax.plot(x, [100 * row[key] for row in rows], label=label, linewidth=1.5, markersize=6, **style)
    ax.axhline(whole, label="As it is", linewidth=1.0, linestyle=(0, (4, 3)), zorder=1, color=FAINT)
    ax.margins(x=0.08)
    _axes(ax, f"{cost} kept (%)", "Validation top-1 accuracy (%)")
    ax.invert_xaxis()
    _title(
        ax, f"{Path(rows[0]['network']).name} without training", "What is left after a cut, from a few hundred images."
    )
    return _name_lines(figure)


def _axes(ax: Axes, x: str, y: str, *limits: float) -> None:
    """Label the axes; with limits, x is logarithmic."""
    if limits:
        x += ", log scale"
        ax.set_xscale("log")
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.set_xlim(*limits)
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
    ax.set_xlabel(x)
    ax.set_ylabel(y)


def _faint(ax: Axes, x, y, style: dict, size: float) -> None:
    """Draw the points of single seeds, behind their mean."""
    marker = "o" if style["marker"] == "*" else style["marker"]
    ax.plot(x, y, linestyle="none", marker=marker, color=style["color"], markersize=size, alpha=0.3, markeredgewidth=0)


def _styles(points: pd.DataFrame) -> dict[str, dict]:
    """Line -> style: the colour shows its method, marker and dashes its variant."""
    styles: dict[str, dict] = {}
    others = iter(OTHER_COLOURS * len(points))
    for method, same in points.groupby("method", sort=False):
        if method == "Dense":
            styles |= {line: {"color": INK, "marker": "*", "markersize": 10, "linestyle": "none"} for line in same.line}
            continue
        colour = COLOURS.get(method) or next(others)
        # The plain method first: its variants' names are longer.
        for i, line in enumerate(sorted(set(same.line), key=lambda text: (len(text), text))):
            styles[line] = {"color": colour, "marker": MARKERS[i % len(MARKERS)], "linestyle": DASHES[i % len(DASHES)]}
    return styles


def _panels(n_rows: int, n_columns: int, width: float, height: float) -> tuple[Figure, np.ndarray]:
    """A figure and its axes by row, each `width` x `height` inches including labels."""
    figure = Figure(figsize=(n_columns * width, n_rows * height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(n_rows, n_columns, squeeze=False)


def _title(ax: Axes, title: str, subtitle: str) -> None:
    ax.set_title(title, loc="left", pad=10 + 13 * (1 + subtitle.count("\n")), fontsize=FONT + 2, fontweight="bold")
    note = ax.annotate(subtitle, (0, 1), (0, 8), "axes fraction", "offset points", color="#555555")
    note.set_in_layout(False)


def _whose(setting: tuple) -> str:
    """The title of a setting's panel."""
    options = f" ({', '.join(setting[3])})" if setting[3] else ""
    return f"{setting[1]} on {setting[0]}{options}{mark(setting[2])}"


def _name_lines(figure: Figure) -> Figure:
    """Name each labelled line to the right of its panel, level with its last point or as near as other names allow.

    Names at equal heights keep the order of their lines. The shifts have the least sum of squares that leaves
    `NAMES_APART` of a name's height between names.
    """
    texts = {}
    for ax in figure.axes:
        ends = [line for line in ax.lines if line.get_label()[:1] not in ("", "_")]
        ends.sort(key=lambda line: line.get_ydata()[-1])
        beside = ax.get_yaxis_transform()
        names = [textwrap.fill(line.get_label(), NAME_WIDTH) for line in ends]
        texts[ax] = [
            (line, ax.text(1.05, line.get_ydata()[-1], name, transform=beside, va="center"))
            for line, name in zip(ends, names)
        ]
    figure.draw_without_rendering()  # fixes the panels' sizes, on which the places of names depend
    figure.set_layout_engine("none")
    for ax, named in texts.items():
        if not named:
            continue
        heights = np.array([text.get_window_extent().height for _, text in named]) * (1 + NAMES_APART)
        least = np.r_[0, np.cumsum((heights[1:] + heights[:-1]) / 2)]  # how far each name must be above the first
        beside, pixels = ax.get_yaxis_transform(), ax.transData
        wanted = np.array([pixels.transform((0, text.get_position()[1]))[1] for _, text in named])
        placed = optimize.isotonic_regression(wanted - least).x + least
        for (line, text), y in zip(named, placed):
            level = pixels.inverted().transform((0, y))[1]
            text.set_y(level)
            style = {"color": line.get_color(), "marker": line.get_marker(), "markersize": 5}
            ax.plot([1.03], [level], transform=beside, clip_on=False, **style)
            leader = {"arrowstyle": "-", "linewidth": 0.7, "alpha": 0.55, "shrinkA": 0, "shrinkB": 0}
            leader["color"] = line.get_color()
            ax.annotate("", line.get_xydata()[-1], (1.03, level), line.get_transform(), beside, arrowprops=leader)
    return figure


@matplotlib.rc_context(LOOK)
def predictions(result: Validation) -> Figure:
    """Predicted against measured latency of held-out networks, one panel per model."""
    measured = 1e3 * np.array(result.measured_s)
    predicted = {name: 1e3 * np.array(values) for name, values in result.predicted_s.items()}
    everything = np.concatenate([measured, *(values[values > 0] for values in predicted.values())])
    low, high = everything.min() / 1.15, everything.max() * 1.15
    figure, (axes,) = _panels(1, len(predicted), 3.0, 3.75)
    for ax, (name, values) in zip(axes, predicted.items()):
        ax.plot([low, high], [low, high], color=FAINT, linewidth=1.0, linestyle=(0, (4, 3)))
        ax.plot(measured, values, "o", markersize=4, alpha=0.6, markeredgewidth=0, color=COLOURS["GCP-f"])
        good = result.quality[name]
        tau = "-" if good.tau is None else f"{good.tau:.3f}"
        ax.set_title(f"{name}: NRMSE {100 * good.nrmse:.1f} %, tau {tau}", fontsize=FONT, loc="left")
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.4g}"))
        ax.set(xlim=(low, high), ylim=(low, high), xlabel="Measured (ms)", box_aspect=1)
    axes[0].set_ylabel("Predicted (ms)")
    title = (
        f"{result.network} at {'x'.join(map(str, result.input))}: {len(measured)} networks that were not fitted, "
        f"fitted to {result.n_samples} others; {setup_of(result, batch=True)}"
    )
    figure.suptitle(title, x=0.01, ha="left", fontsize=FONT + 1, fontweight="bold")
    return figure


# ---- Figure 1 ------------------------------------------------------------------------------------------------------


def networks_of(runs: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, dict]]:
    """Runs on one data set as networks for `figure1`, and the styles of their kinds.

    One network for each dense network, and one for each method and target; means over seeds, but medians for
    throughput. Dense networks are named; a method's networks are named by their target and chained to the network they
    come from.
    """
    rows, kinds = [], {}
    for setting, some in in_order(runs).groupby("setting", sort=False):
        seeds, model = points(some, "images_per_second"), setting[1]
        styles, methods = _styles(seeds), seeds.line[seeds.method != "Dense"].unique()
        family, marker = f"Dense: {re.match('[a-z]*', model)[0]}", "sP*X"[sum("Dense: " in kind for kind in kinds) % 4]
        kinds.setdefault(family, {"color": INK, "marker": marker})
        for line in methods:
            kinds.setdefault(line, {key: styles[line][key] for key in ("color", "marker")})
        for point in joined(seeds, True).rename(columns={"x": "images_per_second", "y": "top1"}).to_dict("records"):
            if point["method"] == "Dense":
                rows.append({**point, "name": model, "kind": family, "chain": None})
                # Once more as the start of each method's line; without a name, it adds nothing visible.
                rows += [{**point, "name": None, "kind": family, "chain": f"{setting} {line}"} for line in methods]
            else:
                chain, name = f"{setting} {point['line']}", f"{100 * point['target']:g} %"
                rows.append({**point, "name": name, "kind": point["line"], "chain": chain})
    return pd.DataFrame(rows), kinds


def pareto(networks: pd.DataFrame) -> pd.DataFrame:
    """The networks that no other beats in both `top1` and `images_per_second`, slowest first."""
    ordered = networks.sort_values(["images_per_second", "top1"], ascending=False, kind="stable")
    best = ordered.top1.cummax().shift(fill_value=float("-inf"))
    return ordered[ordered.top1 > best].iloc[::-1]


@matplotlib.rc_context(LOOK)
def figure1(
    networks: pd.DataFrame,
    kinds: Mapping[str, dict],
    title: str,
    subtitle: str,
    quantity: str = "ImageNet top-1 accuracy (%)",
) -> Figure:
    """Accuracy against throughput of whole networks (the paper's Figure 1).

    Columns of `networks`: `name` (None: not shown), `kind` (one of `kinds`), `chain` (networks of one chain are joined,
    slowest first; None: not in a chain), `top1` in percent and `images_per_second`. `OTHER` networks are drawn faintly
    and without names.
    """
    import adjustText  # takes half a second, since it imports pyplot; only this figure needs it

    figure, ((ax,),) = _panels(1, 1, 9.2, 6.4)
    for kind, style in kinds.items():
        some = networks[networks.kind == kind]
        if len(some):
            look = {"linestyle": "none", "markeredgewidth": 0, "markersize": 7, "zorder": 4, **style}
            look |= {"markersize": 4.5, "zorder": 2} if kind == OTHER else {}
            ax.plot(some.images_per_second, some.top1, label=kind, **look)
    front = pareto(networks)
    # A staircase: each network's accuracy is available at all speeds up to its own.
    corners = front.images_per_second.repeat(2)[:-1], front.top1.repeat(2)[1:]
    ax.plot(*corners, color=FAINT, linewidth=0.9, linestyle=DASHES[1], zorder=1, label="Pareto front")
    chains = [chain for _, chain in networks.sort_values("images_per_second", kind="stable").groupby("chain")]
    for chain in chains:
        colour = kinds[chain.kind.iloc[-1]]["color"]
        ax.plot(chain.images_per_second, chain.top1, color=colour, linewidth=1.2, zorder=3)
    slowest, fastest = networks.images_per_second.min(), networks.images_per_second.max()
    span = max(fastest / slowest, 2.0)
    _axes(ax, "Throughput (images/s)", quantity, slowest / span**0.06, fastest * span**0.18)
    ax.margins(y=0.06)
    ax.set_ylim(*ax.get_ylim())  # names are placed relative to it, so what is drawn later must not move it
    legend = ax.legend(loc="lower left", frameon=False)
    _title(ax, title, "\n".join(textwrap.wrap(subtitle, 128)))
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    named = networks[networks.name.notna() & (networks.kind != OTHER)]
    # Names start to the upper right of networks on the front, outside of it, and to the lower left of all others.
    texts = []
    for i, point in named.iterrows():
        ha, va = ("left", "bottom") if i in front.index else ("right", "top")
        style = {"color": kinds[point.kind]["color"], "fontsize": FONT - 1, "zorder": 5}
        texts.append(ax.text(point.images_per_second, point.top1, f" {point['name']} ", ha=ha, va=va, **style))
    # Names avoid networks, the legend, and points sampled along lines.
    to_data, r, along = ax.transData.inverted(), 5.0 * figure.dpi / 72, []
    at = ax.transData.transform(networks[["images_per_second", "top1"]].to_numpy(float))
    covered = [Bbox.from_extents(x - r, y - r, x + r, y + r).transformed(to_data) for x, y in at]
    covered.append(legend.get_window_extent().transformed(to_data))
    for chain in chains:
        ends, at = chain[["images_per_second", "top1"]], np.linspace(0, len(chain) - 1, 5 * len(chain))
        along.append([np.interp(at, range(len(chain)), ends[key]) for key in ends])
    forces = {"force_explode": (0.05, 0.2), "force_static": (0.3, 0.5), "force_text": (0.2, 0.4)}
    leader = {"min_arrow_len": 14, "arrowprops": {"arrowstyle": "-", "linewidth": 0.6, "color": FAINT}}
    lines = np.concatenate([np.empty((2, 0)), *along], axis=1)
    adjustText.adjust_text(texts, *lines, objects=covered, ax=ax, **forces, **leader, **MOVES)
    return figure


# ---- figures of searches -------------------------------------------------------------------------------------------


# What distinguishes a study of a search: the place of its runs, which differ by seed only, and the study itself.
STUDY = ["setting", "objective", "target", "label", "seed", "study"]


@matplotlib.rc_context(LOOK)
def search_history(trials: pd.DataFrame) -> Figure:
    """The validation loss of each trial and the lowest so far, one panel per study, from rows of `search.trials_of`."""
    studies = list(trials.groupby(STUDY, sort=False))
    several = trials.setting.nunique() > 1
    n_columns = min(len(studies), 4)
    figure, axes = _panels(-(-len(studies) // n_columns), n_columns, 3.6, 2.9)
    for ax, ((setting, _, target, label, seed, study), own) in zip(axes.flat, studies):
        some, early = own[own.state == "complete"], own.trial[own.state == "pruned"]
        ax.plot(some.trial, some.value, "o", color=COLOURS["GCP-f"], markersize=4.5)
        # Trials that ended early have no loss: they are marked at the upper edge.
        edge = {"transform": ax.get_xaxis_transform(), "color": FAINT, "markersize": 4.5}
        ax.plot(early, np.full(len(early), 0.97), "v", **edge)
        best = own.value.cummin().ffill()
        ax.step(own.trial, best, where="post", color=COLOURS["GCP-p"], linewidth=1.3)
        for failed in own.trial[own.state == "failed"]:
            ax.axvline(failed, color=FAINT, linewidth=0.8, linestyle=(0, (2, 2)))
        ax.set(xlabel="Trial", ylabel="Validation loss")
        if own.value.max() > 5 * own.value.min() > 0:
            ax.set_yscale("log")
            ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            ax.yaxis.set_minor_locator(NullLocator())
            ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.3g}"))
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        of = f"{_whose(setting)}, " if several else ""
        title = textwrap.wrap(f"{of}{label}, {100 * target:g} %, seed {seed}", 48)
        ax.set_title("\n".join([*title, study]), loc="left", fontsize=FONT)
    for ax in axes.flat[len(studies) :]:
        ax.axis("off")
    figure.suptitle(
        "Trials of each search, and the lowest loss so far; triangle: it ended early; dashed: it failed",
        x=0.01,
        ha="left",
        fontsize=FONT + 1,
        fontweight="bold",
    )
    return figure


@matplotlib.rc_context(LOOK)
def width_front(rows: Sequence[Mapping], uniform: Sequence[Mapping], sizes: Mapping[str, int], network: str) -> Figure:
    """What the best widths are worth at each cost, and these widths as fractions of the groups' own.

    `rows` are those of `experiment.width_search.front`, `uniform` those of `experiment.width_search.uniform`.
    """
    figure, [[worth, kept]] = _panels(1, 2, 5.6, 4.4)
    cost = cost_label(rows[0]["cost"])
    x = [100 * row["kept"] for row in rows]
    worth.plot([100 * row["kept"] for row in uniform], [row["gain"] for row in uniform], "s--", color=FAINT,
               markersize=3.5, linewidth=0.9, label="every group alike")  # fmt: skip
    worth.plot(x, [row["gain"] for row in rows], "o-", color=COLOURS["GCP-f"], markersize=4, label="best widths")
    worth.set(xlabel=f"{cost} kept (%)", ylabel="Gain over the narrowest (training loss)", xscale="log")
    worth.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    worth.xaxis.set_minor_locator(NullLocator())
    worth.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    worth.legend(frameon=False, loc="lower right")
    parts = np.array([[row["widths"][group] / size for row in rows] for group, size in sizes.items()])
    drawn = kept.imshow(100 * parts, aspect="auto", cmap="cividis", vmin=0, interpolation="nearest")
    kept.set_yticks(range(len(sizes)), [f"{group} ({size})" for group, size in sizes.items()], fontsize=FONT - 1)
    shown = np.unique(np.linspace(0, len(rows) - 1, 7).round().astype(int))
    kept.set_xticks(shown, [f"{x[k]:.3g}" for k in shown])
    kept.set_xlabel(f"{cost} kept (%)")
    kept.grid(False)
    figure.colorbar(drawn, ax=kept, label="Width (% of its own)")
    _title(worth, network, "Widths of most worth by a slimmable network's statistics.")
    return figure


@matplotlib.rc_context(LOOK)
def landscape(lines: Mapping[str, pd.DataFrame], title: str) -> Figure:
    """A cost along a line of widths, one line per way to round them: see `experiment.width_search.landscape`."""
    figure, [[ax]] = _panels(1, 1, 7.0, 4.4)
    for (label, line), colour, style in zip(lines.items(), (FAINT, COLOURS["GCP-p"]), ("-", "o")):
        minima = local_minima(line.ms)
        said = f"{label}: {minima} local minim{'um' if minima == 1 else 'a'}"
        ax.plot(100 * line.part, line.ms, style, color=colour, linewidth=1.1, markersize=4, label=said)
    ax.set(xlabel="All widths, of the network's own (%)", ylabel="Time (ms)", ylim=(0, None))
    ax.legend(frameon=False, loc="upper left")
    _title(ax, title, "What a search by small steps would have to cross.")
    return figure


@matplotlib.rc_context(LOOK)
def predictors(checks: Sequence[Any]) -> Figure:
    """The scores that each predictor gives trained networks against their validation accuracy, one panel per predictor.

    `checks`: see `report.checks.Check`.
    """
    columns = min(3, len(checks))
    figure, axes = _panels(-(-len(checks) // columns), columns, 3.2, 2.8)
    for ax, check in zip(axes.flat, checks):
        ax.plot(check.scores, 100 * check.accuracy, "o", color=COLOURS["GCP-f"], markersize=3.5, alpha=0.7)
        rho = stats.spearmanr(check.scores, check.accuracy).statistic
        ax.set_title(f"{check.label}: rho {rho:.2f}", fontsize=FONT, loc="left")
        ax.set(ylabel="Validation accuracy (%)")
        ax.xaxis.set_major_locator(MaxNLocator(4))
    for ax in axes.flat[len(checks) :]:
        ax.axis("off")
    return figure


@matplotlib.rc_context(LOOK)
def pattern(found: Any) -> Figure:
    """A network's groups as bars, with its own widths behind those that a pattern decides, and its blocks named.

    `found`: an `experiment.architecture_search.Explained`.
    """
    values = found.space.resolved(found.pattern.decisions)
    net, widths = found.space.net, found.space.widths(values)
    left = set(found.space.group_of(found.space.rewritten(values)).values())
    said = {}
    for group in net.groups:
        layers = {layer_name(name) for name in (*group.producers, *group.depthwise)}
        own = [f"{name.partition(':')[2].rpartition('_')[2]} {value}" for name, value in values.items()
               if value != found.space.own[name] and name.startswith(("block:", "kernel:"))
               and name.partition(":")[2] in layers]  # fmt: skip
        said[group.name] = ", ".join(own) if group.name in left else "left out"
    figure, [[ax]] = _panels(1, 1, 7.2, 1.2 + 0.24 * len(net.groups))
    y = np.arange(len(net.groups))
    kept = [widths[group.name] if group.name in left else 0 for group in net.groups]
    ax.barh(y, [group.size for group in net.groups], color=FAINT, height=0.82, alpha=0.45, label="the network's own")
    ax.barh(y, kept, color=COLOURS["GCP-f"], height=0.5, label="by the pattern")
    for at, group, n in zip(y, net.groups, kept):
        text = "  ".join([*([str(n)] if n else []), *([said[group.name]] if said[group.name] else [])])
        ax.text(max(n, group.size) + 0.01 * ax.get_xlim()[1], at, text, va="center", fontsize=FONT - 1)
    ax.set_yticks(y, [group.name for group in net.groups], fontsize=FONT - 1)
    ax.set(xlabel="Channels", xlim=(0, 1.25 * ax.get_xlim()[1]), ylim=(len(y) - 0.4, -0.6))
    ax.legend(frameon=False, loc="upper right")
    _title(ax, net.name, "Widths and blocks that a pattern decides.")
    return figure


@matplotlib.rc_context(LOOK)
def narrowing(rows: Sequence[Mapping], title: str) -> Figure:
    """How many widths of each group AOWS still draws over its training, from rows of a record's history."""
    groups = list(rows[0]["alive"])
    figure, [[ax]] = _panels(1, 1, 6.4, 1.4 + 0.22 * len(groups))
    alive = np.array([[row["alive"][group] for row in rows] for group in groups])
    drawn = ax.imshow(alive, aspect="auto", cmap="cividis", vmin=0, interpolation="nearest")
    ax.set_yticks(range(len(groups)), groups, fontsize=FONT - 1)
    shown = np.unique(np.linspace(0, len(rows) - 1, 6).round().astype(int))
    ax.set_xticks(shown, [f"{rows[k]['step']:,}" for k in shown])
    ax.set_xlabel("Step of the slimmable training")
    ax.grid(False)
    figure.colorbar(drawn, ax=ax, label="Widths still drawn")
    _title(ax, title, "Widths whose probability is at least 1 %.")
    return figure


# ---- figures of a comparison ---------------------------------------------------------------------------------------


@matplotlib.rc_context(LOOK)
def accuracy_bars(runs: pd.DataFrame, order: Sequence[str], baseline: str) -> Figure | None:
    """Top-1 minus the baseline's against the target, from rows of `leaderboard.entries` of one network.

    The five best methods by `order`, the worst, and those whose names begin with gcp are labelled, with bars for the
    standard deviation over seeds; the others are thin lines. None with a single target, for which the table says as
    much.
    """
    base = runs[runs.method == baseline].set_index(["target", "seed"]).top1
    if base.index.get_level_values("target").nunique() < 2:
        return None
    figure, [[ax]] = _panels(1, 1, 9.0, 5.5)
    runs = runs[runs.target.isin(base.index.get_level_values("target"))]
    points = {
        method: 100 * (runs[runs.method == method].set_index(["target", "seed"]).top1 - base).dropna()
        for method in order
        if method != baseline
    }
    there = [method for method, of in points.items() if len(of)]  # others share no target and seed with the baseline
    named = [method for i, method in enumerate(there) if i < 5 or method.startswith("gcp") or i == len(there) - 1]
    colours = [*COLOURS.values(), *OTHER_COLOURS]
    for method in there:
        by_target = points[method].groupby("target")
        mean, sd = by_target.mean()[::-1], by_target.std().fillna(0)[::-1]
        x, style = 100 * mean.index, {"color": "#c4c4c4", "linewidth": 0.8, "zorder": 1, "label": "", "marker": "."}
        if method in named:
            round_, k = divmod(named.index(method), len(colours))  # no colour has the same marker and dashes twice
            style = {"color": colours[k], "marker": MARKERS[(k + round_) % len(MARKERS)], "linewidth": 1.6}
            style |= {"linestyle": DASHES[round_ % len(DASHES)], "zorder": 3, "label": method}
            ax.errorbar(x, mean, sd, fmt="none", color=style["color"], alpha=0.4, capsize=2)
        ax.plot(x, mean, **style)
    ax.axhline(0, color=INK, linewidth=1.0, linestyle=(0, (4, 3)), label=baseline)
    low, high = 100 * runs.target.min(), 100 * runs.target.max()
    _axes(
        ax,
        f"{cost_label(runs.objective.iloc[0])} kept (%)",
        f"Top-1 minus that of {baseline} (points)",
        low / 1.15,
        high * 1.15,
    )
    ax.set_xticks(100 * runs.target.unique())
    ax.invert_xaxis()
    title = f"{runs.network.iloc[0]} on {runs['data'].iloc[0]}{mark(runs.scale.iloc[0])}"
    _title(ax, title, "Mean over seeds and its standard deviation; thin lines are the other methods.")
    return _name_lines(figure)


@matplotlib.rc_context(LOOK)
def rank_diagram(ranking) -> Figure:
    """Mean ranks on an axis, best to the left; a bar joins methods that Nemenyi's test cannot tell apart.

    The diagram of Demsar 2006, Figure 1; `ranking` is what `leaderboard.ranking` returns.
    """
    ranks = ranking.ranks
    n, half = len(ranks), -(-len(ranks) // 2)
    bars = _cliques(ranks.to_numpy(), ranking.difference)
    figure, [[ax]] = _panels(1, 1, 9.0, 1.4 + 0.24 * half + 0.1 * len(bars))
    low, high = 1, max(n, 2)
    ax.set(xlim=(low - 0.32 * (high - low), high + 0.32 * (high - low)), ylim=(half + 1 + 0.4 * len(bars), -2.2))
    ax.axis("off")
    ax.plot([low, high], [0, 0], color=INK, linewidth=1.0)
    step = max(1, n // 10)
    for tick in range(low, high + 1, step):
        ax.plot([tick, tick], [0, -0.2], color=INK, linewidth=1.0)
        ax.text(tick, -0.3, str(tick), ha="center", va="bottom")
    ax.plot([low, min(high, low + ranking.difference)], [-1.6, -1.6], color=INK, linewidth=2.0)
    ax.text(low, -1.75, f"critical difference {ranking.difference:.2f}", va="bottom")
    for k, (first, last) in enumerate(bars):
        y = 0.35 + 0.4 * k
        ax.plot([ranks.iloc[first] - 0.06, ranks.iloc[last] + 0.06], [y, y], color="#D55E00", linewidth=3.0)
    below = 0.8 + 0.4 * len(bars)
    for i, (method, rank) in enumerate(ranks.items()):
        is_left = i < half
        y, x = below + (i if is_left else n - 1 - i), low - 0.5 if is_left else high + 0.5
        ax.plot([rank, rank, x], [0, y, y], color=FAINT, linewidth=0.8)
        ax.text(
            x,
            y,
            f"{method} {rank:.1f} " if is_left else f" {method} {rank:.1f}",
            va="center",
            ha="right" if is_left else "left",
        )
    _title(ax, f"Mean rank over {ranking.n_blocks} blocks", "Left is better; a bar joins what cannot be told apart.")
    return figure


def _cliques(ranks: np.ndarray, difference: float) -> list[tuple[int, int]]:
    """First and last index of every longest run of sorted ranks that are all within the difference."""
    found: list[tuple[int, int]] = []
    for first in range(len(ranks)):
        last = int(np.searchsorted(ranks, ranks[first] + difference, side="right")) - 1
        if last > first and (not found or last > found[-1][1]):
            found.append((first, last))
    return found

"""Tables, words and figures of architecture searches: how right qualities are, and what a pattern means."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, Iterator, List

import pandas as pd

from gcp.report import figures, tables
from gcp.report.frame import cost_label
from gcp.search.quality import QUALITIES

KINDS = {"width": "width", "block": "block", "kernel": "kernel", "drop": "left out", "multiplier": "multiplier"}


def write_checks(correlations: pd.DataFrame, rows: pd.DataFrame, prefix: Path) -> List[Path]:
    """How well qualities rank trained networks, and the networks themselves."""
    table = pd.DataFrame(
        {
            "Quality": [f"{row.label} (control)" if row.is_control else row.label for row in correlations.itertuples()],
            "Kendall's tau": correlations.tau.astype(float),
            "Spearman's rho": correlations.rho.astype(float),
            "p of rho": correlations.p.astype(float),
            "rho with the number of layers": correlations.rho_layers.astype(float),
            "rho at equally many layers": correlations.partial.astype(float),
            "Networks": correlations.n.astype(float),
        }
    )
    digits = {name: 0 if name == "Networks" else 3 for name in table.columns[1:]}
    caption = (
        "Rank correlation of each quality with the validation accuracy of random architectures, each trained from new "
        f"weights, at {100 * rows.macs_kept.min():.1f} to {100 * rows.macs_kept.max():.1f} % of the network's MACs. "
        f"Their accuracies lie between {100 * rows.top1.min():.2f} and {100 * rows.top1.max():.2f} %. At equally many "
        "layers: the partial correlation of ranks."
    )
    paths = tables.save(table, digits, caption, prefix, "tab:qualities")
    asked = list(correlations.quality)
    networks = pd.DataFrame(
        {
            "Top-1 %": 100 * rows.top1,
            "Loss": rows.loss.astype(float),
            "MACs kept %": 100 * rows.macs_kept,
            "Params kept %": 100 * rows.params_kept,
            "Layers": rows.n_layers.astype(float),
            **{QUALITIES[name].label: rows[name].astype(float) for name in asked if not QUALITIES[name].is_control},
        }
    ).sort_values("Top-1 %", ascending=False)
    digits = {name: 2 if "%" in name else 0 if name == "Layers" else 4 for name in networks}
    caption = "Random architectures of about one number of multiply-accumulates, by their validation accuracy."
    paths += tables.save(networks, digits, caption, Path(f"{prefix}.networks"), "tab:quality-networks")
    scores = {QUALITIES[name].label: rows[name] for name in asked}
    return paths + figures.save(figures.predictors(scores, rows.top1), prefix)


def in_words(found: Any) -> Iterator[str]:
    """What a pattern decides, in sentences: see `experiment.architecture_search.Explained`."""
    pattern = found.pattern
    shape = "x".join(map(str, pattern.input))
    kinds = Counter(row["decision"].partition(":")[0] for row in found.rows)
    counts = ", ".join(f"{n} x {KINDS[kind]}" for kind, n in kinds.items()) or "nothing"
    yield f"{pattern.network}, {shape}, {pattern.classes} classes. Decided: {counts}."
    for name, (own, now) in found.costs.items():
        yield f"{cost_label(name)}: {_amount(name, own)} -> {_amount(name, now)} ({100 * now / own:.1f} %)."
    for row in found.rows:
        parts = [f"{cost_label(name)} {100 * (row[name] - 1):+.1f} %" for name in found.costs]
        yield f"{said(row)} Without that: {', '.join(parts)}."


def said(row: dict) -> str:
    """One decision as a sentence."""
    kind, _, what = row["decision"].partition(":")
    if kind == "width":
        return f"{what} has {row['value']} channels in place of {row['own']}."
    if kind == "kernel":
        return f"{what} has a kernel of {row['value']} in place of {row['own']}."
    if kind == "drop":
        return f"The block that ends in {what} is left out."
    if row["value"] == "fused":
        return f"{what} and the 1x1 expansion before it are one ordinary convolution."
    return f"{what} is an ordinary convolution in place of a depthwise one."


def _amount(name: str, value: float) -> str:
    return f"{1e3 * value:.3f} ms" if name == "latency" else f"{value:,.0f}"


def write_explained(found: Any, prefix: Path) -> List[Path]:
    """The decisions as a table, and a picture of the network with them."""
    table = pd.DataFrame(
        [
            {"Decision": row["decision"], "Own": str(row["own"]), "Decided": str(row["value"])}
            | {f"{cost_label(name)} without %": 100.0 * row[name] for name in found.costs}
            for row in found.rows
        ]
    )
    caption = (
        f"What a pattern of {found.pattern.network} decides. Last columns: the cost of the network that it describes "
        "with this one decision taken back, over the cost with it."
    )
    digits = {name: 1 for name in table if name.endswith("%")}
    paths = tables.save(table, digits, caption, prefix, "tab:pattern") if len(table) else []
    return paths + figures.save(figures.pattern(found), prefix)

"""Tables, sentences and figures of architecture searches: how well qualities predict, and what a pattern means."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, Iterator, List, Sequence

import pandas as pd
from scipy import stats

from gcp.report import checks, figures, tables
from gcp.report.checks import Check
from gcp.report.frame import cost_label
from gcp.search.quality import QUALITIES

KINDS = {"width": "width", "block": "block", "kernel": "kernel", "drop": "left out", "multiplier": "multiplier"}


def checks_of(rows: pd.DataFrame, qualities: Sequence[str]) -> List[Check]:
    """Each quality as a check against the accuracy of trained networks; training itself is not a predictor.

    Further columns: rho with the number of layers, and rho with the accuracy among networks with equally many layers.
    """
    found = []
    for name in qualities:
        beside = {
            "rho with the number of layers": stats.spearmanr(rows[name], rows.n_layers).statistic,
            "rho at equally many layers": checks.partial_rho(rows[name], rows.top1, rows.n_layers),
        }
        quality = QUALITIES[name]
        label = f"{quality.label} (control)" if quality.is_control else quality.label
        found.append(Check(label, rows[name], rows.top1, beside, is_listed=not quality.is_control))
    return found


def write_checks(rows: pd.DataFrame, qualities: Sequence[str], prefix: Path) -> List[Path]:
    """Write tables of how well qualities rank trained networks, and of the networks, with a figure; return the paths.

    `rows` come from `experiment.architecture_search.validate`.
    """
    caption = (
        "Rank correlation of each quality with the validation accuracy of random architectures, each trained from new "
        f"weights, at {100 * rows.macs_kept.min():.1f} to {100 * rows.macs_kept.max():.1f} % of the network's MACs. "
        f"Their accuracies lie between {100 * rows.top1.min():.2f} and {100 * rows.top1.max():.2f} %. At equally many "
        "layers: the partial correlation of ranks."
    )
    captions = caption, "Random architectures of about equally many multiply-accumulates, by their validation accuracy."
    names, counts = ("qualities", "quality-networks"), {"Layers": rows.n_layers}
    return checks.write(checks_of(rows, qualities), rows, prefix, "Quality", names, captions, counts)


def in_words(found: Any) -> Iterator[str]:
    """What a pattern decides, in sentences; `found` is an `experiment.architecture_search.Explained`."""
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
    """Write a table of a pattern's decisions and a figure of the network with them; return the paths."""
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

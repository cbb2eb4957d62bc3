"""Tables and figures of searches for widths: the front of a slimmable network's statistics, and how right gains are."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, Iterable, List, Mapping, Sequence

import pandas as pd

from gcp.experiment.record import Finished
from gcp.report import figures, tables
from gcp.report.frame import cost_label

PREDICTORS = {
    "least_squares": "Gains by least squares",
    "means": "Gains by marginal means",
    "slimmable": "Slimmable network, cut",
    "macs_kept": "MACs (control)",
    "params_kept": "Parameters (control)",
    "first": "One training, of the others",
}


def write(runs: Iterable[Finished], output: Path) -> List[Path]:
    """A figure narrowing_<run> of every run of AOWS: how many widths it still drew."""
    paths = []
    for run in runs:
        rows = [row for row in run.record.history if "alive" in row]
        if rows:
            record = run.record
            title = f"{record.name}, {record.model} on {record.data}, seed {record.seed}{figures.mark(record.scale)}"
            paths += figures.save(figures.narrowing(rows, title), output / f"narrowing_{run.path.name}")
    return paths


def write_front(
    rows: Sequence[Mapping[str, Any]],
    uniform: Sequence[Mapping[str, float]],
    sizes: Mapping[str, int],
    network: str,
    prefix: Path,
) -> List[Path]:
    """The table and the picture of the front; `uniform` widths are drawn beside it, `sizes` are those of 100 %."""
    name = rows[0]["cost"]
    table = pd.DataFrame(
        [
            {
                f"{cost_label(name)} kept %": 100.0 * row["kept"],
                **({"Latency (ms)": 1e3 * row["value"]} if name == "latency" else {}),
                "MACs kept %": 100.0 * row["macs_kept"],
                "Params kept %": 100.0 * row["params_kept"],
                "Gain": row["gain"],
                "Gap %": 100.0 * row["gap"],
                **{f"{group} ({sizes[group]})": float(width) for group, width in row["widths"].items()},
            }
            for row in rows
        ]
    )
    digits: Dict[str, Any] = {title: 0 for title in table}
    digits |= {"Gain": 4, "Gap %": 2, "Latency (ms)": 3}
    digits |= {title: 2 for title in table if title.endswith("kept %")}
    caption = (
        f"{network}: the widths of most worth at each {cost_label(name).lower()}, by the gains of a slimmable "
        "network; widths that are worth no more than cheaper ones are left out. Gap: how much more any widths within "
        "the same cost could be worth. Of each group, its own width in brackets."
    )
    paths = tables.save(table, digits, caption, prefix, "tab:width-front")
    return paths + figures.save(figures.width_front(rows, uniform, sizes, network), prefix)


def write_checks(correlations: pd.DataFrame, rows: pd.DataFrame, prefix: Path) -> List[Path]:
    """How well gains rank trained networks, and the networks themselves."""
    table = pd.DataFrame(
        {
            "Predictor": correlations.predictor.map(PREDICTORS),
            "Kendall's tau": correlations.tau.astype(float),
            "Spearman's rho": correlations.rho.astype(float),
            "p of rho": correlations.p.astype(float),
            "rho with the slimmable network": correlations.of_slimmable.astype(float),
            "Networks": correlations.n.astype(float),
        }
    )
    digits = {name: 0 if name == "Networks" else 3 for name in table.columns[1:]}
    spread = 100 * (rows.top1.max() - rows.top1.min())
    caption = (
        "Rank correlation of what a slimmable network's statistics predict with the validation accuracy of networks of "
        f"random widths, each trained from new weights, at {100 * rows.macs_kept.min():.1f} to "
        f"{100 * rows.macs_kept.max():.1f} % of the MACs. The accuracies differ by {spread:.2f} points at most. The "
        "slimmable network predicts by its validation loss when it is cut to the widths."
    )
    paths = tables.save(table, digits, caption, prefix, "tab:gains")
    networks = pd.DataFrame(
        {
            "Top-1 %": 100 * rows.top1,
            "Loss": rows.loss.astype(float),
            "MACs kept %": 100 * rows.macs_kept,
            "Params kept %": 100 * rows.params_kept,
            **{PREDICTORS[name]: rows[name].astype(float) for name in ("least_squares", "means", "slimmable")},
        }
    ).sort_values("Top-1 %", ascending=False)
    digits = {name: 2 if "%" in name else 4 for name in networks}
    caption = "Networks of random widths, by their validation accuracy."
    paths += tables.save(networks, digits, caption, Path(f"{prefix}.networks"), "tab:gain-networks")
    scores = {PREDICTORS[name]: rows[name] for name in correlations.predictor if name != "first"}
    return paths + figures.save(figures.predictors(scores, rows.top1), prefix)

"""Tables and figures of width searches: the front of a slimmable network's statistics, and how well gains predict."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, Iterable, List, Mapping, Sequence

import numpy as np
import pandas as pd
from scipy import stats

from gcp.experiment.record import Finished
from gcp.report import checks, figures, tables
from gcp.report.checks import Check
from gcp.report.frame import cost_label

PREDICTORS = {
    "means": "Gains by marginal means",
    "least_squares": "Gains by least squares",
    "slimmable": "Slimmable network, cut",
    "macs_kept": "MACs (control)",
    "params_kept": "Parameters (control)",
    "first": "One training, of the others",
}


def write(runs: Iterable[Finished], output: Path) -> List[Path]:
    """Draw a figure narrowing_<run> for every run of AOWS: how many widths it still drew, over its training."""
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
    """Write the table and the figure of the front, and return the paths.

    `uniform` widths are drawn for comparison; `sizes` are the widths that count as 100 %.
    """
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


def checks_of(rows: pd.DataFrame) -> List[Check]:
    """Each predictor as a check against the validation accuracy; MACs and parameters are the controls.

    How well one training predicts the mean of others (`first`) is the most that can be expected of any predictor.
    Further column: rho with the score of the slimmable network when it is cut, which gains estimate.
    """
    found = []
    for name in (name for name in PREDICTORS if name in rows):
        of = np.nan if name == "slimmable" else stats.spearmanr(rows[name], rows.slimmable).statistic
        accuracy = rows.others if name == "first" else rows.top1
        is_control = name.endswith("_kept")
        is_listed = not is_control and name != "first"
        beside = {"rho with the slimmable network": of}
        found.append(Check(PREDICTORS[name], rows[name], accuracy, beside, name != "first", is_listed))
    return found


def write_checks(rows: pd.DataFrame, prefix: Path) -> List[Path]:
    """Write tables of how well gains rank trained networks, and of the networks, with a figure; return the paths.

    `rows` come from `experiment.width_search.validate`.
    """
    spread = 100 * (rows.top1.max() - rows.top1.min())
    caption = (
        "Rank correlation of what a slimmable network's statistics predict with the validation accuracy of networks of "
        f"random widths, each trained from new weights, at {100 * rows.macs_kept.min():.1f} to "
        f"{100 * rows.macs_kept.max():.1f} % of the MACs. The accuracies differ by {spread:.2f} points at most, their "
        f"sample standard deviation is {100 * rows.top1.std():.2f}. The slimmable network predicts by its validation "
        "loss when it is cut to the widths."
    )
    captions = caption, "Networks of random widths, by their validation accuracy."
    return checks.write(checks_of(rows), rows, prefix, "Predictor", ("gains", "gain-networks"), captions)

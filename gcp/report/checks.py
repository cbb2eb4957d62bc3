"""How well cheap predictors rank trained networks: rank correlations, a table of the networks, and a figure."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, List, Mapping, NamedTuple, Sequence

import numpy as np
import pandas as pd
from scipy import stats

from gcp.report import figures, tables


class Check(NamedTuple):
    """A predictor as tables show it: the `scores` of networks, higher for better ones, against their `accuracy`."""

    label: str
    scores: pd.Series
    accuracy: pd.Series
    beside: Mapping[str, float] = {}  # further columns in the predictor's row
    is_drawn: bool = True
    is_listed: bool = True  # whether it is a column in the table of networks


def correlations(checks: Sequence[Check], title: str) -> pd.DataFrame:
    """A row per predictor, named in the column `title`, with its rank correlations with the accuracy."""
    rows: List[Dict[str, Any]] = []
    for check in checks:
        tau, rho = stats.kendalltau(check.scores, check.accuracy), stats.spearmanr(check.scores, check.accuracy)
        found = {"Kendall's tau": tau.statistic, "Spearman's rho": rho.statistic, "p of rho": rho.pvalue}
        rows.append({title: check.label, **found, **check.beside, "Networks": float(len(check.scores))})
    return pd.DataFrame(rows)


def partial_rho(x: Sequence[float], y: Sequence[float], given: Sequence[float]) -> float:
    """Spearman's partial rank correlation of x and y given a third variable.

    It is the correlation of the residuals of their ranks after a linear fit on the ranks of the third. NaN if any of
    the three is constant, or if the ranks of x or y follow from those of the third.
    """
    a, b, c = (stats.rankdata(values) for values in (x, y, given))
    if any(np.ptp(ranks) == 0 for ranks in (a, b, c)):
        return float("nan")
    left = [ranks - np.polyval(np.polyfit(c, ranks, 1), c) for ranks in (a, b)]
    if min(float(np.abs(each).max()) for each in left) < 1e-6:
        return float("nan")
    return float(np.corrcoef(*left)[0, 1])


def write(
    checks: Sequence[Check],
    rows: pd.DataFrame,
    prefix: Path,
    title: str,
    names: Sequence[str],
    captions: Sequence[str],
    counts: Mapping[str, pd.Series] = {},
) -> List[Path]:
    """Write the tables `prefix` (see `correlations`) and `prefix`.networks, and a figure; return the paths.

    The figure shows the predictors for which `is_drawn` is set. `rows` has `top1`, `loss`, `macs_kept` and
    `params_kept` of each network, to which `counts` adds columns; `names` and `captions` are those of the two tables.
    """
    table = correlations(checks, title)
    digits = {name: 0 if name == "Networks" else 3 for name in table.columns[1:]}
    paths = tables.save(table, digits, captions[0], prefix, f"tab:{names[0]}")
    networks = pd.DataFrame(
        {
            "Top-1 %": 100 * rows.top1,
            "Loss": rows.loss.astype(float),
            "MACs kept %": 100 * rows.macs_kept,
            "Params kept %": 100 * rows.params_kept,
            **{name: values.astype(float) for name, values in counts.items()},
            **{check.label: check.scores.astype(float) for check in checks if check.is_listed},
        }
    ).sort_values("Top-1 %", ascending=False, kind="stable")
    digits = {name: 2 if "%" in name else 0 if name in counts else 4 for name in networks}
    paths += tables.save(networks, digits, captions[1], Path(f"{prefix}.networks"), f"tab:{names[1]}")
    return paths + figures.save(figures.predictors([c for c in checks if c.is_drawn]), prefix)

"""What experiments will take, as a table: rows of `gcp.experiment.estimate` in, Markdown out."""

from __future__ import annotations

from typing import List, Optional

import pandas as pd

from gcp.experiment.estimate import Row
from gcp.report import tables


def markdown(rows: List[Row], measured: Optional[str] = None) -> str:
    """The rows as a table, with a sum and what it stands on."""
    number = tables.number
    lines = []
    for row in rows:
        level = "-" if row.table is None or row.table == "figure1" else str(row.level)
        reach = "-" if row.target is None else "yes" if row.is_reachable else f"NO: {100 * row.lowest:.2f} % at least"
        lines.append(
            {
                "Experiment": row.name,
                "Seed": str(row.seed),
                "Level": level,
                "Target %": "-"
                if row.target is None
                else f"{100 * row.target:.4g} of {row.objective}{', chosen' if row.chosen else ''}",
                "Reachable": reach,
                "Lowest %": number(None if row.lowest is None else 100 * row.lowest, 2),
                "Params (M), uniform": number(row.params / 1e6, 3) + ("*" if row.stand_in else ""),
                "GMACs, uniform": number(row.macs / 1e9, 4) + ("*" if row.stand_in else ""),
                "Images, dense": number(row.images_dense, 0),
                "Images, pruning": number(row.images_prune, 0),
                "Images, fine-tuning": number(row.images_finetune, 0),
                "Images": number(row.images, 0),
                "Time": "-" if row.seconds is None else duration(row.seconds),
            }
        )
    total = {key: "" for key in lines[0]}
    total.update(
        {
            "Experiment": "all",
            "Images": number(sum(row.images for row in rows), 0),
            "Time": "-" if measured is None else duration(sum(row.seconds for row in rows)),
        }
    )
    words = ("Experiment", "Target %", "Reachable")
    text = pd.DataFrame([*lines, total]).to_markdown(
        index=False, disable_numparse=True, colalign=["left" if title in words else "right" for title in total]
    )
    notes = ["Params and MACs: of the network pruned uniformly to the target; without one, of the network itself."]
    if any(row.stand_in for row in rows):
        notes.append("*: the network to start from is not there yet; its uniform counterpart stands in.")
    notes.append("Time: not measured." if measured is None else f"Time: on {measured}.")
    return f"{text}\n\n{' '.join(notes)}"


def duration(seconds: float) -> str:
    """Seconds in the unit that suits them: "45 s", "12 min", "7.5 h", "31 days"."""
    for unit, size, most in (("s", 1, 100), ("min", 60, 100), ("h", 3600, 72)):
        if seconds < most * size:
            return f"{seconds / size:,.{0 if size < 3600 else 1}f} {unit}"
    return f"{seconds / 86400:,.0f} days"

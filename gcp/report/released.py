"""The released PruneNets beside what was published, as a table: facts of `gcp.experiment.released` in, Markdown out."""

from __future__ import annotations

from typing import List

import pandas as pd

from gcp.report import tables


def markdown(facts: List[dict]) -> str:
    """The facts as a table."""
    digits = {
        "Params (M)": 3,
        "GMACs": 3,
        "Params kept": 4,
        "MACs reduction": 2,
        "Params with norms (M)": 3,
        "Top-1 %": 2,
        "Top-5 %": 2,
    }
    frame = pd.DataFrame(
        [
            {
                key: tables.number(value, digits.get(key, 0)) if key != "Network" else value
                for key, value in each.items()
            }
            for each in facts
        ]
    )
    return frame.to_markdown(
        index=False,
        disable_numparse=True,
        colalign=["left" if title == "Network" else "right" for title in frame.columns],
    )

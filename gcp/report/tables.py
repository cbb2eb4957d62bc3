"""A table in, Markdown, LaTeX and CSV files out, and how a number is written in the first two.

Who has a table says how its cells read; here is only what all tables have in common.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

MISSING = "-"


def number(value: float | None, digits: int | None, sign: str = "") -> str:
    """A number with thousands' commas and so many digits (None: six that count); `MISSING` for None and NaN."""
    if value is None or pd.isna(value):
        return MISSING
    if digits is None:
        return f"{value:.6g}"
    text = f"{value:{sign},.{digits}f}"
    return text.lstrip("-+") if float(text.replace(",", "")) == 0 else text  # no "-0.00"


def write(
    table: pd.DataFrame,
    printed: pd.DataFrame,
    align: Sequence[str],
    caption: str,
    stem: Path,
    label: str,
    blocks: str | None = None,
) -> list[Path]:
    """Write `printed`, a frame of strings, as .md and .tex, and the numbers of `table` as .csv; returns the paths.

    `align`: "left" or "right" for each printed column. Rows with the same text in the column `blocks` belong together:
    it is printed once, and in LaTeX a rule divides them. An empty table is its caption.
    """
    paths = [stem.with_suffix(suffix) for suffix in (".md", ".tex", ".csv")]
    if table.empty:
        paths[0].write_text(f"{caption}\n", encoding="utf-8")
        paths[1].write_text(f"% {caption}\n", encoding="utf-8")
    else:
        begins = [] if blocks is None else list(printed[blocks] != printed[blocks].shift())
        if blocks is not None:
            printed = printed.assign(**{blocks: printed[blocks].where(begins, "")})
        markdown = printed.to_markdown(index=False, disable_numparse=True, colalign=list(align))
        paths[0].write_text(f"{caption}\n\n{markdown}\n", encoding="utf-8")
        latex = printed.to_latex(
            index=False,
            escape=True,
            caption=escaped(caption),
            label=label,
            position="t",
            column_format="".join(a[0] for a in align),
        ).replace("±", r"$\pm$")
        # Only what is too wide for the page becomes smaller.
        narrowed = "\\centering\n\\begin{adjustbox}{max width=\\textwidth}\n\\begin{tabular}"
        latex = latex.replace(r"\begin{tabular}", narrowed, 1)
        latex = latex.replace(r"\end{tabular}", "\\end{tabular}\n\\end{adjustbox}", 1)
        paths[1].write_text(f"% needs booktabs and adjustbox\n{_ruled(latex, begins)}", encoding="utf-8")
    table.to_csv(paths[2], index=False, na_rep=MISSING, float_format="%.6g", lineterminator="\n")
    return paths


def escaped(text: str) -> str:
    """Plain text for LaTeX."""
    return re.sub(r"([&%$#_{}])", r"\\\1", text)


def _ruled(latex: str, begins: list[bool]) -> str:
    """The table with a rule above each row that begins a block, but for the first."""
    lines = latex.split("\n")
    head = lines.index(r"\midrule") + 1
    for i in reversed([i for i, begin in enumerate(begins) if begin and i]):
        lines.insert(head + i, r"\midrule")
    return "\n".join(lines)

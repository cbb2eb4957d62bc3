"""What each width of each group is worth, according to a slimmable training: the files of statistics, and estimators.

Gains are additive over the groups, as in Berman et al., "AOWS", CVPR 2020, section 3.3, in units of the training loss.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

# Optional, not `X | None`: pydantic evaluates the annotations, and Python 3.9 cannot evaluate that form.
from typing import TYPE_CHECKING, Annotated, Callable, Dict, List, Literal, Mapping, Sequence, Tuple

import numpy as np
from pydantic import Field, model_validator
from scipy import optimize

from gcp.cost.sampling import Count, Schema
from gcp.errors import UserError
from gcp.registry import Registry
from gcp.storage import parse_json, read_text, write_text

if TYPE_CHECKING:  # configurations, which name estimators, are read before MXNet is imported
    from gcp.train.slimmable import Drawn

Gains = Dict[str, np.ndarray]  # for each group, a value for each of its levels
FIX = "train again with `search.py train`, or name a file that it wrote"
SMOOTHNESS = (1e-3, 1e-2, 1e-1, 1.0)  # weights of the curvature penalty to try, chosen on held-out drawn widths
FOLDS = 4
PERIODS = 4  # of a training; in each, losses may drift at a rate of their own for reasons other than widths

Level = Annotated[int, Field(ge=0, le=10**4)]
Name = Annotated[str, Field(max_length=1000)]


class Header(Schema):
    """The first line: the network with its widths at 100 % (`sizes`), what it was trained on, the grid of levels."""

    format: Literal["gcp width statistics 1"] = "gcp width statistics 1"
    network: Name
    input: Tuple[Count, Count, Count]
    classes: Count
    data: Name
    seed: Annotated[int, Field(ge=0, lt=2**31)]
    batch: Count
    sizes: Dict[Name, Count]
    levels: Dict[Name, Annotated[List[Count], Field(min_length=1, max_length=10**4)]]

    @model_validator(mode="after")
    def _check(self) -> Header:
        if self.sizes.keys() != self.levels.keys():
            raise ValueError("sizes and levels should have the same groups")
        if any(b <= a for of in self.levels.values() for a, b in zip(of, of[1:])):
            raise ValueError("the widths of a group must be increasing")
        return self


class Line(Schema):
    """Consecutive steps that trained the same widths: their number, the level indices, the mean loss difference."""

    n: Count
    levels: List[Level]
    difference: float


class Statistics(Schema):
    """The contents of a file of statistics."""

    header: Header
    lines: List[Line]

    @property
    def drawn(self) -> Drawn:
        """The lines, expanded to one row per step."""
        from gcp.train.slimmable import Drawn

        counts = [line.n for line in self.lines]
        levels = np.array([line.levels for line in self.lines], np.int64).reshape(-1, len(self.header.levels))
        return Drawn(np.repeat(levels, counts, 0), np.repeat([line.difference for line in self.lines], counts))


def path_of(prefix: Path) -> Path:
    """The file of statistics beside the slimmable network that is saved under this prefix."""
    return Path(f"{prefix}.statistics.jsonl")


def write(path: Path, header: Header, drawn: Drawn) -> None:
    """Write a file of statistics, whole or not at all."""
    lines = [header.model_dump_json()]
    new = np.r_[True, (drawn.levels[1:] != drawn.levels[:-1]).any(1)] if len(drawn.levels) else np.zeros(0, bool)
    starts = np.flatnonzero(new)
    for a, b in zip(starts, [*starts[1:], len(drawn.levels)]):
        line = {"n": int(b - a), "levels": drawn.levels[a].tolist(), "difference": float(drawn.differences[a:b].mean())}
        lines.append(json.dumps(line))
    write_text(path, "\n".join(lines) + "\n")


def read(path: Path) -> Statistics:
    """Read a file that `write` wrote. UserError: there is no such file, or it is of another kind."""
    first, *rest = read_text(path, FIX).split("\n")
    header = parse_json(first, Header, f"{path}: line 1: not a header of width statistics", FIX)
    lines = [parse_json(text, Line, f"{path}: line {n}", FIX) for n, text in enumerate(rest, 2) if text.strip()]
    sizes = [len(of) for of in header.levels.values()]
    for n, line in enumerate(lines, 2):
        if len(line.levels) != len(sizes) or any(level >= size for level, size in zip(line.levels, sizes)):
            raise UserError(
                f"{path}: line {n}: its levels do not match the header's groups; {FIX}", "statistics.levels"
            )
    if not lines:
        raise UserError(f"{path}: contains no drawn widths; {FIX}", "statistics.empty")
    return Statistics(header=header, lines=lines)


# ---- estimates -------------------------------------------------------------------------------------------------------

# A function (drawn, levels) -> gains, where `drawn` holds the steps to use.
ESTIMATORS: Registry[Callable[["Drawn", Mapping[str, Sequence[int]]], Gains]] = Registry("estimator")


def gains_of(drawn: Drawn, levels: Mapping[str, Sequence[int]], estimator: str, window: float, n: int = 0) -> Gains:
    """Gains from the last fraction `window` of the first n steps (all by default), and from all steps after these.

    UserError: there is no estimator of that name.
    """
    n = n or len(drawn.levels)
    first = n - max(1, round(window * n))
    counted = replace(drawn, levels=drawn.levels[first:], differences=drawn.differences[first:])
    return ESTIMATORS[estimator](counted, levels)


@ESTIMATORS.register("means")
def marginal_means(drawn: Drawn, levels: Mapping[str, Sequence[int]]) -> Gains:
    """The paper's estimate: minus the mean difference of all steps that had a width, divided by the number of groups.

    Widths that no step had are interpolated linearly between their neighbours.
    """
    gains = {}
    for g, (name, of) in enumerate(levels.items()):
        n = np.bincount(drawn.levels[:, g], minlength=len(of))
        total = np.bincount(drawn.levels[:, g], -drawn.differences / len(levels), len(of))
        known = np.flatnonzero(n)
        gains[name] = np.interp(np.arange(len(of)), known, total[known] / n[known])
    return gains


@ESTIMATORS.register("least_squares")
def least_squares(drawn: Drawn, levels: Mapping[str, Sequence[int]]) -> Gains:
    """Additive gains that explain all differences jointly, so that the other groups' widths are not noise.

    A group's gain never falls as it widens and is concave, and as smooth as held-out drawn widths call for. The
    narrowest width has gain 0. Differences fall as the training goes on, and widths may be drawn narrower and narrower,
    so there is a constant that changes with time, linearly between `PERIODS` + 1 points.
    """
    time = np.arange(len(drawn.levels)) * PERIODS / max(1, len(drawn.levels) - 1)
    rows, which = np.unique(np.column_stack([time.astype(int), drawn.levels]), axis=0, return_inverse=True)
    counts = np.bincount(which.ravel())
    wanted, time = (np.bincount(which.ravel(), of) / counts for of in (-drawn.differences, time))
    sizes = [len(of) for of in levels.values()]
    # Concave and rising: a sum of min(level, k) with non-negative weights. The constants can have either sign.
    bends = [np.minimum(rows[:, [g + 1]], np.arange(1, size)) for g, size in enumerate(sizes)]
    constants = np.maximum(0, 1 - np.abs(time[:, None] - np.arange(PERIODS + 1)))
    matrix = np.hstack([*bends, constants, -constants]).astype(np.float64)
    fold = np.arange(len(rows)) % FOLDS
    grams = [_gram(matrix, wanted, counts, fold == k) for k in range(FOLDS)]

    def error(smooth: float) -> float:
        total = 0.0
        for k in range(FOLDS):
            found = _not_negative([grams[j] for j in range(FOLDS) if j != k], smooth)
            out = fold == k
            total += counts[out] @ (matrix[out] @ found - wanted[out]) ** 2
        return total

    smooth = min(SMOOTHNESS, key=error) if len(rows) > FOLDS else SMOOTHNESS[-1]
    parts = np.split(_not_negative(grams, smooth)[: -2 * (PERIODS + 1)], np.cumsum([size - 1 for size in sizes])[:-1])
    return {
        name: np.minimum(np.arange(size)[:, None], np.arange(1, size)) @ part
        for name, size, part in zip(levels, sizes, parts)
    }


def _gram(matrix: np.ndarray, wanted: np.ndarray, counts: np.ndarray, which: np.ndarray) -> Tuple[np.ndarray, ...]:
    weighted = matrix[which] * counts[which, None]
    return weighted.T @ matrix[which], weighted.T @ wanted[which], counts[which].sum()


def _not_negative(grams: Sequence[Tuple[np.ndarray, ...]], smooth: float) -> np.ndarray:
    """The non-negative solution of the summed, penalised normal equations, by the Cholesky factor of their matrix.

    The last unknowns, the constants, are not penalised.
    """
    square, right, n = (sum(parts) for parts in zip(*grams))
    penalty = np.full(len(right), n * smooth)
    penalty[-2 * (PERIODS + 1) :] = 0
    square = square + np.diag(penalty + 1e-6 * max(square.diagonal().max(), 1.0))
    root = np.linalg.cholesky(square)
    found, _ = optimize.nnls(root.T, np.linalg.solve(root, right), maxiter=100 * len(right))
    return found


Estimator = Literal[tuple(ESTIMATORS)]

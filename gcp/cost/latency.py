"""Latency models, which are fitted to samples of timed networks and give a `Cost`: a per-layer table, or a regression.

The table is that of Berman et al., "AOWS" (CVPR 2020, section 3.1): each timed network is one linear equation over the
entries (kind of layer, input channels, output channels), solved by non-negative least squares with a soft penalty on
entries that fall as widths grow. The regression has a few coefficients per operator instead, so that it also prices
networks whose layers were never timed; it is the table's prior where samples determine little.
"""

from __future__ import annotations

from functools import cached_property, lru_cache
from pathlib import Path

# Optional, not `X | None`: pydantic evaluates the annotations, and Python 3.9 cannot evaluate that form.
from typing import Annotated, Callable, Dict, List, Literal, Mapping, NamedTuple, Optional, Sequence, Tuple

import numpy as np
from pydantic import Field, model_validator
from scipy import optimize, sparse
from threadpoolctl import threadpool_limits

from gcp.cost.base import COSTS, Cost, Term
from gcp.cost.layers import Layer, layers
from gcp.cost.sampling import (
    GRANULARITIES,
    Count,
    Divided,
    Hardware,
    NotNegative,
    Positive,
    Sampled,
    Samples,
    Schema,
    Setup,
    Subject,
    difference,
)
from gcp.errors import UserError
from gcp.graph.network import Network, Widths
from gcp.options import Options
from gcp.storage import read_json, write_json

# The table's axes, as fractions of a group's own width; the smallest width stands for what aggressive pruning leaves.
FRACTIONS = (0.0, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 1.0, 1.25, 1.5)
SMOOTHNESS = (1e-1, 1.0, 10.0, 100.0)  # weights of the penalties to try, in this order; chosen on held-out samples
MONOTONICITY = (0.0, 0.1, 1.0, 10.0)
CHOICE_TOLERANCE, TOLERANCE = 1e-7, 1e-10  # relative decrease of the objective at which a fit ends
DAMPING = 1e-2  # pulls extras towards those that the probes found
OUTLIER = 0.1  # larger errors count linearly, since other processes occupy the processor now and then
RIDGE = 1e-4  # pulls entries towards the regression, which decides those that no sample has
MIN_SAMPLES = 20
FLAGS = 5  # ways in which a width can divide badly; see `Steps.flags`
FEATURES = ("call", "macs", "values read", "values made", "weights")


class Steps(NamedTuple):
    """The cost of widths that are not multiples of the device's granularity: `granularity` and `step`, in channels.

    `step` is half the granularity or equal to it (`sampling.step_of`). `slowdowns`: for each of `GRANULARITIES`, the
    factor on the time of a network whose widths are divisible by it but not by a larger one, as `sampling.slowdowns_of`
    returns it. All methods take arrays of widths.
    """

    granularity: int
    step: int
    slowdowns: Mapping[int, float]

    def rounded(self, widths: np.ndarray) -> np.ndarray:
        """The multiple of the step that takes as long as a width, apart from `factor`: the width rounded up."""
        return -(-widths // self.step) * self.step

    def factor(self, widths: np.ndarray) -> np.ndarray:
        """Slowdown of a width that is not a multiple of the step, relative to one that is; 1 for multiples."""
        base = self.slowdowns[self.step]
        slower = [max(1.0, self.slowdowns[g] / base) if g < self.step else 1.0 for g in GRANULARITIES]
        largest_power = np.minimum(widths & -widths, GRANULARITIES[-1])  # of two, that divides the width
        return np.array(slower)[np.log2(largest_power).astype(int)]

    def flags(self, widths: np.ndarray) -> np.ndarray:
        """How badly a width of n steps divides: `FLAGS` numbers, along the last axis.

        Kernels process channels in blocks and unroll their loops by a divisor of the number of blocks. An odd n may
        leave its last block half full and take as long as n + 1, a fraction 1 / n more; and a number of blocks (n or
        n + 1) that is odd, twice an odd number or prime can leave no divisor to unroll by.
        """
        n = self.rounded(widths) // self.step
        odd = n % 2 == 1

        def is_stiff(n: np.ndarray) -> np.ndarray:
            """Whether the odd part of n is at least 7 and divisible by neither 3 nor 5."""
            odd_part = n // (n & -n)
            return (odd_part >= 7) & (odd_part % 3 != 0) & (odd_part % 5 != 0)

        return np.stack([odd, odd / n, n % 4 == 2, is_stiff(n), odd & is_stiff(n + 1)], -1).astype(np.float64)


# ---- the regression: a few coefficients per operator -----------------------------------------------------------------


def features(layer: Layer, n_in: np.ndarray, n_out: np.ndarray) -> np.ndarray:
    """`FEATURES` along the last axis: one call, multiply-accumulates, values read, values made (per image), weights."""
    pairs = n_out if layer.depthwise else n_in * n_out
    parts = (
        1.0,
        layer.kernel_size * layer.positions * pairs,
        layer.in_positions * n_in,
        layer.out_positions * n_out,
        layer.kernel_size * pairs,
    )
    return np.stack(np.broadcast_arrays(*parts), -1).astype(np.float64)


class Regression(Schema):
    """Per operator, the seconds for one unit of each of `features`."""

    features: Tuple[Literal[FEATURES], ...] = FEATURES
    seconds: Dict[str, Annotated[List[NotNegative], Field(min_length=len(FEATURES), max_length=len(FEATURES))]]

    def layer(self, layer: Layer, n_in: np.ndarray, n_out: np.ndarray) -> np.ndarray:
        """Predicted seconds for one layer. UserError: an operator that no sample had."""
        if layer.operator not in self.seconds:
            raise UserError(
                f"layer '{layer.name}': the latency model has seen no '{layer.operator}', only "
                f"{', '.join(self.seconds)}; sample a network that has one",
                key="latency.operator",
            )
        return features(layer, n_in, n_out) @ np.array(self.seconds[layer.operator])

    def __call__(self, kinds: Sequence[Layer], widths: Widths) -> float:
        """Predicted seconds for a network."""
        return float(sum(self.layer(layer, *layer.widths(widths)) for layer in kinds))


def fit_regression(
    kinds: Sequence[Layer], widths: Sequence[Widths], seconds: np.ndarray, present: Optional[np.ndarray] = None
) -> Regression:
    """Non-negative least squares over the networks' summed features; squared errors are weighted by 1 / seconds.

    The fit is repeated with less weight on errors above `OUTLIER`, which makes it Huber's loss. `present`: whether a
    network has a layer, shape (layers, networks); by default every network has all layers.
    """
    present = np.ones((len(kinds), len(widths)), bool) if present is None else present
    operators = list(dict.fromkeys(layer.operator for layer in kinds))
    rows = np.zeros((len(widths), len(operators), len(FEATURES)))
    for layer, has in zip(kinds, present):
        rows[:, operators.index(layer.operator)] += features(layer, *_widths_of(layer, widths)) * has[:, None]
    rows = rows.reshape(len(widths), -1)
    units = rows.max(0)
    units[units == 0] = 1.0
    weight = 1 / seconds
    for _ in range(5):
        root = np.sqrt(weight)
        found, _ = optimize.nnls(rows / units * root[:, None], seconds * root)
        miss = np.abs(rows / units @ found - seconds) / np.sqrt(seconds * seconds.mean())
        weight = 1 / (seconds * np.maximum(1.0, miss / OUTLIER))
    return Regression(seconds=dict(zip(operators, (found / units).reshape(len(operators), -1).tolist())))


def _widths_of(layer: Layer, widths: Sequence[Widths]) -> Tuple[np.ndarray, np.ndarray]:
    """Input and output channels of a layer in several networks, shape (networks,) each."""
    return tuple(np.array([layer.widths(w) for w in widths], np.int64).reshape(-1, 2).T)


# ---- the table -------------------------------------------------------------------------------------------------------

Axis = Annotated[List[Annotated[int, Field(ge=0, le=2**24)]], Field(min_length=1, max_length=10**4)]


class Entries(Schema):
    """Seconds for one kind of layer: `seconds[k][n]` at `read[k]` input channels and `made[n]` output channels.

    Values between the widths of the axes are bilinear. A depthwise conv, which has a single width, has a single column.
    """

    read: Axis
    made: Axis
    seconds: List[List[NotNegative]]

    @model_validator(mode="after")
    def _check(self) -> Entries:
        if any(b <= a for axis in (self.read, self.made) for a, b in zip(axis, axis[1:])):
            raise ValueError("the widths of an axis must be increasing")
        if [len(row) for row in self.seconds] != [len(self.made)] * len(self.read):
            raise ValueError(f"seconds must be {len(self.read)} rows of {len(self.made)}, to match its axes")
        return self

    @cached_property
    def arrays(self) -> Tuple[Tuple[np.ndarray, np.ndarray], np.ndarray]:
        """Both axes, and all seconds flattened."""
        return (np.array(self.read), np.array(self.made)), np.array(self.seconds, np.float64).reshape(-1)


class LatencyModel(Divided):
    """The latency of one network, setup and hardware as a table, with a regression for layers that are not in it.

    `extras`: for each kind, the fractions of time that the flags (`Steps.flags`) of a layer's input channels (first
    row) and output channels (second row) add. `held_out_nrmse`: the error on the held-out quarter of the samples, on
    which the penalties' weights were chosen.
    """

    format: Literal["gcp latency table 1"] = "gcp latency table 1"
    n_samples: Count
    sampling_s: Optional[NotNegative] = None
    smoothness: NotNegative
    monotonicity: NotNegative
    held_out_nrmse: NotNegative
    seconds_per_mac: Positive
    reference_s: Positive
    table: Dict[str, Entries]
    extras: Dict[str, Tuple[Tuple[(NotNegative,) * FLAGS], Tuple[(NotNegative,) * FLAGS]]]
    regression: Regression

    @cached_property
    def steps(self) -> Steps:
        """How widths divide into steps on this device."""
        return Steps(self.granularity, self.step, self.slowdowns)

    def knows(self, layer: Layer) -> bool:
        """Whether layers of this kind were timed."""
        return layer.kind in self.table

    def layer(self, layer: Layer, n_in: int, n_out: int) -> float:
        """Predicted seconds for one layer: by the table, or by the regression if its kind is not in the table.

        Beyond the table's widest entries, time grows as the regression says.
        """
        n_in, n_out = np.array(n_in), np.array(n_out)
        factor, flags = _sides(layer, self.steps, n_in, n_out)
        if layer.kind in self.extras:
            added = (np.array(self.extras[layer.kind]) * flags).sum(-1)
            factor = factor * (1 + added[0]) * (1 + added[1])
        n_in, n_out = self.steps.rounded(n_in), self.steps.rounded(n_out)
        if not self.knows(layer):
            return float(factor * self.regression.layer(layer, n_in, n_out))
        axes, values = self.table[layer.kind].arrays
        inside = [np.minimum(n, axis[-1]) if len(axis) > 1 else n for n, axis in zip((n_in, n_out), axes)]
        if layer.depthwise:  # its only axis is that of its input
            inside[1] = inside[0]
        if inside != [n_in, n_out]:
            wider, widest = (self.regression.layer(layer, *at) for at in ((n_in, n_out), inside))
            factor = factor * (wider / widest if widest > 0 else 1.0)
        entries, shares = _corners(axes, *inside)
        return float(factor * (shares * values[entries]).sum(-1))

    def cost(self, net: Network) -> Cost:
        """Seconds for a forward pass of this network as a function of its widths, with one term per layer.

        UserError: an operator that no sample had, or a total that is zero or not finite.
        """

        def term(layer: Layer) -> Term:
            @lru_cache(maxsize=None)  # a search evaluates the same few widths again and again
            def seconds(*widths: int) -> float:
                return self.layer(layer, *layer.widths(dict(zip(layer.groups, widths))))

            return Term(layer.groups, seconds, layer.name)

        terms = [term(layer) for layer in layers(net)]
        cost = Cost(terms, granularity=self.granularity)
        if not 0 < cost(net.widths) < np.inf:
            raise UserError(
                f"the latency model predicts {cost(net.widths):g} s for '{net.name}'; fit it to other samples"
            )
        return cost


def _sides(layer: Layer, steps: Steps, n_in: np.ndarray, n_out: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
    """For a layer's widths, the slowdown where one is not a multiple of the step, and the flags, shape (2, ..., FLAGS).

    A fixed width causes no slowdown and has flags of 0.
    """
    sides = [(n, bool(side.per_unit)) for n, side in ((n_in, layer.inputs), (n_out, layer.outputs))]
    slower = [steps.factor(n) for n, varies in sides if varies]
    factor = np.maximum.reduce([np.ones(np.shape(n_out)), *slower])
    return factor, np.stack([steps.flags(n) * varies for n, varies in sides])


def _corners(axes: Tuple[np.ndarray, np.ndarray], n_in: np.ndarray, n_out: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
    """Flat indices and weights, along a last axis of 4, of the entries around points, for bilinear interpolation.

    Above the axes, which samples are only by rounding, the extrapolation is linear; a point below an axis counts as the
    axis's first width.
    """
    low, high, share = [], [], []
    for axis, at in zip(axes, (n_in, n_out)):
        above = np.clip(np.searchsorted(axis, at), 1, max(1, len(axis) - 1))
        below, above = above - 1, np.minimum(above, len(axis) - 1)  # equal if the axis has one width
        low.append(below)
        high.append(above)
        share.append(np.maximum((at - axis[below]) / np.maximum(axis[above] - axis[below], 1), 0.0) * (len(axis) > 1))
    index = [i * len(axes[1]) + j for i in (low[0], high[0]) for j in (low[1], high[1])]
    weight = [a * b for a in (1 - share[0], share[0]) for b in (1 - share[1], share[1])]
    return np.stack(index, -1), np.stack(weight, -1)


# ---- the fit ---------------------------------------------------------------------------------------------------------


def grid(size: int, granularity: int, step: int) -> List[int]:
    """The axis for a group of `size` channels: the step, the size, `FRACTIONS` of it rounded to the granularity."""
    return sorted({step, size} | {max(granularity, round(f * size / granularity) * granularity) for f in FRACTIONS})


@threadpool_limits.wrap(limits=1)  # with short vectors, waiting for a second thread can take ten times as long
def fit(net: Network, samples: Samples, sampled: Optional[Sampled] = None) -> LatencyModel:
    """Fit the table and the regression to a network's samples; penalties are chosen on a held-out quarter of them.

    `sampled` as in `sampling.sample`. UserError: fewer than `MIN_SAMPLES` samples.
    """
    if len(samples.lines) < MIN_SAMPLES:
        raise UserError(
            f"{samples.path}: {len(samples.lines)} networks are too few for a fit; sample {MIN_SAMPLES} or more",
            key="latency.few-samples",
        )
    head, seconds = samples.header, samples.seconds
    sampled = sampled or Sampled(net)
    kinds, present = _all_layers(sampled, samples)
    steps = Steps(head.granularity, head.step, head.slowdowns)
    equations = _Equations(kinds, net.widths, samples.widths, steps, present)
    held_out = np.arange(len(seconds)) % 4 == 3  # samples are independent, so any quarter will do
    trial = _Fit(equations, ~held_out, seconds)

    @lru_cache(maxsize=None)
    def error(smooth: float, monotone: float) -> float:
        return nrmse(trial.predict(trial.solve(smooth, monotone, CHOICE_TOLERANCE), held_out), seconds[held_out])

    smooth = min(SMOOTHNESS, key=lambda weight: error(weight, 1.0))
    monotone = min(MONOTONICITY, key=lambda weight: error(smooth, weight))
    final = _Fit(equations, np.ones(len(seconds), bool), seconds)
    table, extras = final.tables(final.solve(smooth, monotone, TOLERANCE))
    took, counts = [line.took_s for line in samples.lines], _macs(kinds, samples.widths, present)
    return LatencyModel(
        **{key: value for key, value in head if key in Divided.model_fields},
        n_samples=len(seconds),
        sampling_s=None if None in took else sum(took),
        smoothness=smooth,
        monotonicity=monotone,
        held_out_nrmse=error(smooth, monotone),
        # The simplest model, proportional to multiply-accumulates, by the same weighted least squares.
        seconds_per_mac=float(counts.sum() / (counts**2 / seconds).sum()),
        reference_s=samples.reference_s,
        table=table,
        extras=extras,
        regression=final.regression,
    )


class _Equations:
    """How the times of sampled networks add up: one row for each layer in each network, with layers varying slowest.

    A row's time is the interpolated seconds of its `entries`, times one plus the extras of its `flags` on each side,
    times its `factor`, which is 0 where the network does not have the layer (`present`, shape (layers, networks)).
    """

    def __init__(
        self, kinds: Sequence[Layer], sizes: Widths, widths: Sequence[Widths], steps: Steps, present: np.ndarray
    ) -> None:
        self.layers, self.widths, self.steps, self.present = tuple(kinds), widths, steps, present
        self.axes = _axes(kinds, sizes, steps)
        counts = [len(n_in) * len(n_out) for n_in, n_out in self.axes.values()]
        self.start = dict(zip(self.axes, np.cumsum([0, *counts])))
        self.n_entries = sum(counts)
        number = {kind: k for k, kind in enumerate(self.axes)}
        parts = []
        for layer in kinds:
            n_in, n_out = _widths_of(layer, widths)
            index, share = _corners(self.axes[layer.kind], steps.rounded(n_in), steps.rounded(n_out))
            parts.append((self.start[layer.kind] + index, share, *_sides(layer, steps, n_in, n_out)))
        entries, shares, factor, flags = zip(*parts)
        self.factor = np.concatenate(factor) * present.ravel()
        self.entries = _sparse(np.concatenate(entries), np.concatenate(shares), self.n_entries)
        of_kind = np.repeat([FLAGS * number[layer.kind] for layer in kinds], len(widths))[:, None] + np.arange(FLAGS)
        self.flags = [_sparse(of_kind, np.concatenate(side), FLAGS * len(number)) for side in zip(*flags)]


def _sparse(columns: np.ndarray, values: np.ndarray, width: int) -> sparse.csr_matrix:
    """The sparse matrix of this width with `values[i]` in the columns `columns[i]` of row i."""
    ends = np.arange(0, values.size + 1, values.shape[1])
    matrix = sparse.csr_matrix((values.ravel(), columns.ravel(), ends), (len(values), width))
    matrix.eliminate_zeros()
    return matrix


def _axes(kinds: Sequence[Layer], sizes: Widths, steps: Steps) -> Dict[str, Tuple[np.ndarray, np.ndarray]]:
    """Per kind, the axes of its table: the widths from the grids of all layers of that kind."""
    points: Dict[str, Tuple[set, set]] = {}
    for layer in kinds:
        n_in, n_out = (
            grid(side(sizes), steps.granularity, steps.step) if side.per_unit else [side(sizes)]
            for side in (layer.inputs, layer.outputs)
        )
        read, made = points.setdefault(layer.kind, (set(), set()))
        read.update(n_out if layer.depthwise else n_in)  # a depthwise conv has one width, which is both
        made.update([0] if layer.depthwise else n_out)
    return {kind: tuple(np.array(sorted(side)) for side in sides) for kind, sides in points.items()}


class _Fit:
    """Entries and extras, all >= 0, that minimise Huber's loss of the errors on some samples plus penalties.

    Errors are in units of sqrt(seconds * mean seconds); those above `OUTLIER` count linearly. Extras are pulled towards
    what the granularity probes measured. The unknowns are the entries, as ratios to their prior, and the extras of
    input and output channels.
    """

    def __init__(self, equations: _Equations, which: np.ndarray, seconds: np.ndarray) -> None:
        self.equations, self.which, self.seconds = equations, which, seconds[which]
        widths = [w for w, use in zip(equations.widths, which) if use]
        self.regression = fit_regression(equations.layers, widths, self.seconds, equations.present[:, which])
        by_kind = {layer.kind: layer for layer in equations.layers}
        prior = [
            self.regression.layer(by_kind[kind], n_in[:, None], n_in[:, None] if by_kind[kind].depthwise else n_out)
            for kind, (n_in, n_out) in equations.axes.items()
        ]
        # No entry of the prior is 0, so that a ratio to it can express any number of seconds.
        least = 1e-4 * float(self.seconds.mean()) / len(equations.layers)
        self.prior = np.maximum(np.concatenate([values.ravel() for values in prior]), least)
        # In a network of odd multiples of the step, both widths of each layer contribute to the slowdown.
        steps, n_kinds = equations.steps, len(equations.axes)
        slow = max(0.0, np.sqrt(steps.slowdowns[steps.step] / steps.slowdowns[steps.granularity]) - 1)
        usual = np.tile([slow] + [0.0] * (FLAGS - 1), 2 * n_kinds)
        self.begin = np.concatenate([np.ones(len(self.prior)), usual])
        self.pull = np.repeat([RIDGE, DAMPING], [len(self.prior), len(usual)])

    def _parts(self, which: np.ndarray) -> Tuple[sparse.csr_matrix, np.ndarray]:
        """For some samples' rows, the matrix that maps the unknowns to entries and both extras; and the factors."""
        equations, rows = self.equations, np.tile(which, len(self.equations.layers))
        entries = equations.entries[rows] @ sparse.diags(self.prior)
        blocks = [entries, *(flags[rows] for flags in equations.flags)]
        return sparse.block_diag(blocks, "csr"), equations.factor[rows]

    def predict(self, x: np.ndarray, which: np.ndarray) -> np.ndarray:
        """Predicted seconds for some samples."""
        matrix, factor = self._parts(which)
        part, by_in, by_out = (matrix @ x).reshape(3, -1)
        return (part * (1 + by_in) * (1 + by_out) * factor).reshape(len(self.equations.layers), -1).sum(0)

    def solve(self, smooth: float, monotone: float, tolerance: float) -> np.ndarray:
        """The unknowns for these weights of the penalties on differences between neighbours and on falling entries."""
        parts, factor = self._parts(self.which)
        neighbours, falls = self._penalties()
        n_layers, n_rows, n_pairs = len(self.equations.layers), len(factor), neighbours.shape[0]
        beside = sparse.csr_matrix((n_pairs, len(self.begin) - len(self.prior)))
        matrix = sparse.vstack([parts, sparse.hstack([neighbours, beside]), sparse.hstack([falls, beside])], "csr")
        transposed = matrix.T.tocsr()
        weight = 1 / np.sqrt(self.seconds * self.seconds.mean())
        ends = np.cumsum([n_rows, n_rows, n_rows, n_pairs])

        def objective(x: np.ndarray) -> Tuple[float, np.ndarray]:
            part, by_in, by_out, step, fall = np.split(matrix @ x, ends)
            by_in, by_out, fall = 1 + by_in, 1 + by_out, np.maximum(fall, 0.0)
            predicted = (part * by_in * by_out * factor).reshape(n_layers, -1).sum(0)
            miss = weight * (predicted - self.seconds)
            clipped = np.clip(miss, -OUTLIER, OUTLIER)
            away = x - self.begin
            value = clipped @ (2 * miss - clipped) + smooth * step @ step / n_layers
            value = value + monotone * fall @ fall + self.pull @ away**2
            slope = np.tile(weight * clipped, n_layers) * factor
            of_parts = [slope * by_in * by_out, slope * part * by_out, slope * part * by_in]
            back = np.concatenate([*of_parts, smooth / n_layers * step, monotone * fall])
            return value, 2 * (transposed @ back + self.pull * away)

        options = {"maxiter": 1500, "maxfun": 2000, "maxcor": 10, "ftol": tolerance}
        bounds = [(0, None)] * len(self.begin)
        return optimize.minimize(objective, self.begin, jac=True, method="L-BFGS-B", bounds=bounds, options=options).x

    def _penalties(self) -> Tuple[sparse.csr_matrix, sparse.csr_matrix]:
        """For each pair of neighbouring entries, two differences: of their ratios to the prior, and of their seconds.

        The second is smaller width minus larger, positive where the table falls, in units of a sampled network's mean
        seconds per layer.
        """
        pairs = []
        for kind, axes in self.equations.axes.items():
            number = self.equations.start[kind] + np.arange(len(axes[0]) * len(axes[1])).reshape(-1, len(axes[1]))
            for axis, along in zip(axes, (number, number.T)):
                # Neighbours that are far apart on the axis, relative to their widths, may differ more.
                gap = np.log(axis[1:] / np.maximum(axis[:-1], 1))
                weight = np.broadcast_to(1 / np.sqrt(np.maximum(gap, 0.05))[:, None], along[1:].shape)
                pairs.append(np.stack([along[:-1].ravel(), along[1:].ravel(), weight.ravel()]))
        low, high, weight = np.concatenate(pairs, axis=1)
        columns, prior = np.stack([low, high], 1).astype(np.int64), self.prior
        share = prior * len(self.equations.layers) / self.seconds.mean()
        falls = np.stack([share[columns[:, 0]], -share[columns[:, 1]]], 1)
        return _sparse(columns, np.stack([-weight, weight], 1), len(prior)), _sparse(columns, falls, len(prior))

    def tables(self, x: np.ndarray) -> Tuple[Dict[str, Entries], Dict[str, tuple]]:
        """The unknowns in the form in which a model stores them: table and extras."""
        equations, n_entries = self.equations, len(self.prior)
        seconds, extras = x[:n_entries] * self.prior, x[n_entries:].reshape(2, -1, FLAGS)
        table = {}
        for kind, (n_in, n_out) in equations.axes.items():
            values = seconds[equations.start[kind] :][: len(n_in) * len(n_out)].reshape(len(n_in), len(n_out))
            table[kind] = Entries(read=n_in.tolist(), made=n_out.tolist(), seconds=values.tolist())
        return table, {k: tuple(map(tuple, extras[:, n].tolist())) for n, k in enumerate(equations.axes)}


def _all_layers(sampled: Sampled, samples: Samples) -> Tuple[List[Layer], np.ndarray]:
    """All layers that any sampled network has; and whether each network has each of them, shape (layers, networks)."""
    found: Dict[tuple, Layer] = {}
    keys = []
    for line in samples.lines:
        own = {(layer.name, layer.kind, layer.groups): layer for layer in sampled.layers(line.decisions)}
        found.update(own)
        keys.append(own.keys())
    return list(found.values()), np.array([[key in own for own in keys] for key in found])


def _macs(kinds: Sequence[Layer], widths: Sequence[Widths], present: np.ndarray) -> np.ndarray:
    """Multiply-accumulates of networks made of these layers, shape (networks,)."""
    at = FEATURES.index("macs")
    return sum(features(layer, *_widths_of(layer, widths))[:, at] * has for layer, has in zip(kinds, present))


# ---- how good a model is ---------------------------------------------------------------------------------------------


def nrmse(predicted: np.ndarray, measured: np.ndarray) -> float:
    """Root mean squared error, divided by the mean measured value."""
    return float(np.sqrt(np.mean((predicted - measured) ** 2)) / np.mean(measured))


class Quality(Schema):
    """How good predictions are for networks that the model was not fitted to; `tau` is Kendall's."""

    rmse_s: NotNegative
    nrmse: NotNegative
    tau: Optional[Annotated[float, Field(ge=-1, le=1)]]  # None if all are equal and have no order
    within_5: Optional[Annotated[float, Field(ge=0, le=1)]] = None  # fraction of networks predicted within 5 %
    within_10: Optional[Annotated[float, Field(ge=0, le=1)]] = None  # None in files from before it was recorded
    mean_relative_error: NotNegative
    n: Count


class Validation(Schema):
    """What models predict for networks that none of them was fitted to, and how good the predictions are.

    `span`: the smallest and the largest measured latency, relative to the original network's.
    """

    network: str
    input: Tuple[Count, Count, Count]
    setup: Setup
    hardware: Hardware
    n_samples: Count
    sampling_s: Optional[NotNegative] = None
    granularity: Count
    reference_s: Positive
    span: Tuple[Positive, Positive]
    quality: Dict[str, Quality]
    measured_s: List[Positive]
    predicted_s: Dict[str, List[float]]

    @model_validator(mode="after")
    def _check(self) -> Validation:
        if self.quality.keys() != self.predicted_s.keys():
            raise ValueError("quality and predicted_s must name the same models")
        if any(len(values) != len(self.measured_s) for values in self.predicted_s.values()):
            raise ValueError(f"predicted_s must hold {len(self.measured_s)} values per model, as many as measured_s")
        return self


def validate(
    model: LatencyModel,
    net: Network,
    held_out: Samples,
    alone: Optional[Sequence[float]] = None,
    again: Optional[Samples] = None,
    sampled: Optional[Sampled] = None,
) -> Validation:
    """How well the models predict networks that none of them was fitted to.

    `alone`: per network, the sum of its layers' latencies, each timed by itself, relative to the reference's latency
    (`sampling.layers_alone`). `again`: the same networks timed once more, which is as good as a prediction can be.
    `sampled` as in `sampling.sample`. Drift is removed: all times are scaled to the speed of the model's reference.
    UserError: `again` holds other networks.
    """
    reference = model.reference_s

    def at_that_speed(samples: Samples) -> np.ndarray:
        return samples.seconds * reference / samples.reference_s

    sampled, measured = sampled or Sampled(net), at_that_speed(held_out)
    networks = [(sampled.layers(line.decisions), w) for line, w in zip(held_out.lines, held_out.widths)]
    every, present = _all_layers(sampled, held_out)
    counts = _macs(every, held_out.widths, present)
    predicted = {
        "table": [sum(model.layer(layer, *layer.widths(w)) for layer in kinds) for kinds, w in networks],
        "regression": [model.regression(kinds, w) for kinds, w in networks],
        "MACs": (model.seconds_per_mac * counts).tolist(),
    }
    if alone is not None:
        predicted["layers alone"] = [reference * share for share in alone]
    if again is not None:
        if [(line.widths, line.decisions) for line in again.lines] != [
            (line.widths, line.decisions) for line in held_out.lines
        ]:
            raise UserError(
                f"{again.path}: does not hold the same networks as {held_out.path}; give a file that does not exist yet"
            )
        predicted["repeat measurement"] = at_that_speed(again).tolist()
    kept = ("network", "input", "setup", "n_samples", "sampling_s", "granularity", "reference_s")
    return Validation(
        **{key: getattr(model, key) for key in kept},
        hardware=held_out.header.hardware,
        span=(float(measured.min() / reference), float(measured.max() / reference)),
        quality={name: quality(np.array(values), measured) for name, values in predicted.items()},
        measured_s=measured.tolist(),
        predicted_s=predicted,
    )


def quality(predicted: np.ndarray, measured: np.ndarray) -> Quality:
    """How good predictions are; both arrays are in seconds, shape (networks,)."""
    from scipy import stats  # takes a third of a second to import

    tau, miss = float(stats.kendalltau(predicted, measured).statistic), np.abs(predicted / measured - 1)
    return Quality(
        rmse_s=float(np.sqrt(np.mean((predicted - measured) ** 2))),
        nrmse=nrmse(predicted, measured),
        tau=tau if np.isfinite(tau) else None,
        within_5=float(np.mean(miss <= 0.05)),
        within_10=float(np.mean(miss <= 0.1)),
        mean_relative_error=float(np.mean(miss)),
        n=len(measured),
    )


# ---- files -----------------------------------------------------------------------------------------------------------


def save(model: LatencyModel, path: Path) -> None:
    """Write a model as JSON, atomically. UserError: the file cannot be written."""
    write_json(path, model.model_dump(exclude_none=True))


def load(path: Path) -> LatencyModel:
    """Read a model that `save` wrote. UserError: no such file, or not a latency model."""
    return read_json(path, LatencyModel, "give a latency model that `latency.py fit` wrote")


def load_for(
    path: Path,
    net: Network,
    n_threads: int,
    hardware: Callable[[str], dict],
    warn: Callable[[str], None] = lambda text: None,
) -> LatencyModel:
    """Read a model for this network on this machine; `hardware` describes one of its devices (`runtime.hardware`).

    UserError: the model is for another network, input size, processor or number of threads.
    """
    model = load(path)
    setup = {**dict(model.setup), "threads": n_threads}
    here = Subject.of(net, setup, hardware(model.setup.device))
    apart = difference(model, here, lambda text: warn(f"{path}: {text}"))
    if apart:
        raise UserError(
            f"prune.latency_model: '{path}' does not fit the experiment ({apart}); "
            "sample and fit one for it with scripts/latency.py",
            key="latency.other",
        )
    return model


class LatencyOptions(Options):
    """The path of the latency model."""

    latency_model: str


@COSTS.register(
    "latency", LatencyOptions, label="Latency", method="GCP-latency", paper_label="latency", unit="s", is_timed=True
)
def predicted(net: Network, options: LatencyOptions) -> Cost:
    """Seconds for a forward pass, as predicted by a model that was fitted to timed networks."""
    return load(Path(options.latency_model)).cost(net)

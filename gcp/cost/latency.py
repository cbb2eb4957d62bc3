"""Samples of timed networks in, a model of seconds out, which is a `Cost`: a per-layer table, or a regression.

The table is that of Berman et al., "AOWS" (CVPR 2020, section 3.1): each timed network is one linear equation over the
entries (kind of layer, width read, width made), solved by non-negative least squares with a soft penalty on entries
that fall as widths grow. The regression has a few coefficients per operator instead, so it also prices networks whose
layers were never timed, and it is the table's prior where samples say little.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Callable, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

import numpy as np
from scipy import optimize, sparse, stats
from sklearn.linear_model import LinearRegression

from gcp.cost.analytic import macs
from gcp.cost.base import COSTS, Cost, Term
from gcp.cost.sampling import Layer, Samples, header_problem, layers, width_class
from gcp.errors import UserError
from gcp.graph.network import Network, Widths
from gcp.options import Options
from gcp.storage import write_json

# The table's axes, as fractions of a group's own width: the least width stands for what hard pruning leaves.
FRACTIONS = (0.0, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 1.0, 1.25, 1.5)
TABLE = "gcp latency table 1"
SMOOTHNESS = (1e-1, 1.0, 10.0, 100.0)  # tried weights of the penalties, in this order; chosen on held-out samples
MONOTONICITY = (0.0, 0.1, 1.0, 10.0)
DAMPING = 1e-2  # of extras, towards those that the probes found
OUTLIER = 0.1
RIDGE = 1e-4  # towards the regression, for entries that no sample has
FLAGS = 5  # ways in which a width can divide badly; see `Steps.flags`
FEATURES = ("call", "macs", "values read", "values made", "weights")


class Steps(NamedTuple):
    """What widths off the device's granularity cost: `granularity` and `step` (half of it), in channels.

    `slowdowns`: width class -> factor on the time of a network of such widths, as `sampling.slowdowns` gives it.
    """

    granularity: int
    step: int
    slowdowns: Mapping[int, float]

    def rounded(self, width: int) -> int:
        """The multiple of the step that a width takes as long as, apart from `factor`."""
        return -(-width // self.step) * self.step

    def factor(self, width: int) -> float:
        """Slowdown of a width that is no multiple of the step, over one that is."""
        g = width_class(width)
        return max(1.0, self.slowdowns[g] / self.slowdowns[self.step]) if g < self.step else 1.0

    def flags(self, width: int) -> Tuple[float, ...]:
        """`FLAGS` of a width of n steps: how badly it divides.

        Kernels take channels in blocks and unroll their loops by a divisor of the number of blocks. An odd n may fill
        its last block half, so that it takes as long as n + 1, a share 1 / n more; and a number of blocks (n, or n + 1)
        that is odd, twice an odd number or prime can leave nothing to unroll by.
        """
        n = self.rounded(width) // self.step
        odd = n % 2 == 1
        return float(odd), odd / n, float(n % 4 == 2), float(_is_stiff(n)), float(odd and _is_stiff(n + 1))


def _is_stiff(n: int) -> bool:
    """Whether the odd part of n is 7 or more and has neither 3 nor 5 in it."""
    while n % 2 == 0:
        n //= 2
    return n >= 7 and n % 3 != 0 and n % 5 != 0


# ---- the regression: a few coefficients per operator -----------------------------------------------------------------


def features(layer: Layer, read: float, made: float) -> np.ndarray:
    """`FEATURES` of a layer at widths: one call, multiply-accumulates, values read and made (per image), weights."""
    pairs = made if layer.depthwise else read * made
    return np.array(
        [1.0, layer.taps * layer.sites * pairs, layer.read_sites * read, layer.made_sites * made, layer.taps * pairs]
    )


@dataclass(frozen=True)
class Regression:
    """Seconds per unit of each feature, by operator: `coefficients[operator]` has shape (len(FEATURES),)."""

    coefficients: Mapping[str, np.ndarray]

    def layer(self, layer: Layer, read: float, made: float) -> float:
        """Seconds of one layer. UserError: an operator that no sample had."""
        if layer.operator not in self.coefficients:
            raise UserError(
                f"layer '{layer.name}': the latency model has seen no '{layer.operator}', only "
                f"{', '.join(self.coefficients)}; sample a network that has one"
            )
        return float(self.coefficients[layer.operator] @ features(layer, read, made))

    def __call__(self, kinds: Sequence[Layer], widths: Widths) -> float:
        """Seconds of a network."""
        return sum(self.layer(layer, *layer.widths(widths)) for layer in kinds)


def fit_regression(kinds: Sequence[Layer], widths: Sequence[Widths], seconds: np.ndarray) -> Regression:
    """Non-negative least squares over the networks' summed features; squared errors weighted by 1 / seconds.

    Repeated with less weight on errors above `OUTLIER`, which makes it Huber's loss.
    """
    operators = list(dict.fromkeys(layer.operator for layer in kinds))
    rows = np.zeros((len(widths), len(operators), len(FEATURES)))
    for row, w in zip(rows, widths):
        for layer in kinds:
            row[operators.index(layer.operator)] += features(layer, *layer.widths(w))
    rows = rows.reshape(len(widths), -1)
    units = rows.max(0)
    units[units == 0] = 1.0
    model, weight = LinearRegression(positive=True, fit_intercept=False), 1 / seconds
    for _ in range(5):
        model.fit(rows / units, seconds, sample_weight=weight)
        miss = np.abs(model.predict(rows / units) - seconds) / np.sqrt(seconds * seconds.mean())
        weight = 1 / (seconds * np.maximum(1.0, miss / OUTLIER))
    return Regression(dict(zip(operators, (model.coef_ / units).reshape(len(operators), -1))))


# ---- the table -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Table:
    """Seconds per (kind of layer, width read, width made), bilinear between the widths of its axes.

    `axes[kind]`: widths read and widths made, rising; `seconds[kind]`: shape (n read, n made); a depthwise conv, which
    has one width, has one column. `extras[kind]`, shape (2, FLAGS): shares of time that the flags of the width read
    and of the width made add (`Steps.flags`). `header`: network, setup and hardware of this latency, and how
    good the fit was.
    """

    header: dict
    steps: Steps
    axes: Mapping[str, Tuple[np.ndarray, np.ndarray]]
    seconds: Mapping[str, np.ndarray]
    extras: Mapping[str, np.ndarray]
    regression: Regression

    def knows(self, layer: Layer) -> bool:
        """Whether layers of this kind were timed."""
        return layer.kind in self.axes

    def layer(self, layer: Layer, read: int, made: int) -> float:
        """Seconds of one layer; by the regression where the table has no such kind."""
        factor = _factor(layer, self.steps, self.extras, read, made)
        read, made = self.steps.rounded(read), self.steps.rounded(made)
        if not self.knows(layer):
            return factor * self.regression.layer(layer, read, made)
        values = self.seconds[layer.kind].reshape(-1)
        return factor * sum(w * values[k] for k, w in _corners(self.axes[layer.kind], read, made))

    def cost(self, net: Network) -> Cost:
        """Seconds of a forward pass of this network by its widths: a term for each layer."""
        return self._cost(layers(net))

    def _cost(self, kinds: Sequence[Layer]) -> Cost:
        header = self.header
        terms = [Term(layer.groups, self._seconds_of(layer)) for layer in kinds]
        return Cost(terms, "sum", self.steps.granularity, header.get("setup"), header.get("reference_s"))

    def _seconds_of(self, layer: Layer) -> Callable[..., float]:
        @lru_cache(maxsize=None)  # a search asks for the same few widths again and again
        def seconds(*widths: int) -> float:
            return self.layer(layer, *layer.widths(dict(zip(layer.groups, widths))))

        return seconds


def _factor(layer: Layer, steps: Steps, extras: Mapping[str, np.ndarray], read: int, made: int) -> float:
    """Slowdown of widths by how they divide; a width that is fixed counts as it is."""
    by_step = max(steps.factor(read) if layer.reads else 1.0, steps.factor(made) if layer.makes else 1.0)
    if layer.kind not in extras:
        return by_step
    added = (extras[layer.kind] * _flagged(layer, steps, read, made)).sum(1)
    return by_step * (1 + added[0]) * (1 + added[1])


def _flagged(layer: Layer, steps: Steps, read: int, made: int) -> np.ndarray:
    """Flags of both widths, shape (2, FLAGS); none where a width is fixed."""
    none = (0.0,) * FLAGS
    return np.array([steps.flags(read) if layer.reads else none, steps.flags(made) if layer.makes else none])


def _corners(axes: Tuple[np.ndarray, np.ndarray], read: float, made: float) -> List[Tuple[int, float]]:
    """(flat index, weight) of the entries around a point: bilinear, flat below the axes, linear above them."""
    sides = []
    for axis, at in zip(axes, (read, made)):
        if len(axis) == 1 or at <= axis[0]:
            sides.append([(0, 1.0)])
            continue
        k = min(int(np.searchsorted(axis, at, side="left")), len(axis) - 1)
        share = (at - axis[k - 1]) / (axis[k] - axis[k - 1])
        sides.append([(k, share)] if share == 1.0 else [(k - 1, 1 - share), (k, share)])
    return [(i * len(axes[1]) + j, a * b) for i, a in sides[0] for j, b in sides[1]]


# ---- the fit ---------------------------------------------------------------------------------------------------------


def grid(size: int, granularity: int, step: int) -> List[int]:
    """The axis of a group of `size` channels: the step, and `FRACTIONS` of its size in multiples of the granularity."""
    return sorted({step, size} | {max(granularity, round(f * size / granularity) * granularity) for f in FRACTIONS})


class _System(NamedTuple):
    """The equations' fixed parts: entries by kind, their prior, neighbours."""

    axes: Dict[str, Tuple[np.ndarray, np.ndarray]]
    start: Dict[str, int]
    prior: np.ndarray
    neighbours: sparse.csr_matrix  # differences of neighbouring entries' ratios to the prior
    falls: sparse.csr_matrix  # smaller width minus larger, in shares of a mean network: positive where the table falls


def fit(net: Network, samples: Samples) -> Table:
    """The table (and regression) of a network's samples; choices are made on a quarter of them held out.

    UserError: fewer than 20 samples.
    """
    if len(samples.lines) < 20:
        raise UserError(f"{samples.path}: {len(samples.lines)} networks are too few for a fit; sample 20 or more")
    head = samples.header
    steps = Steps(head["granularity"], head["step"], {int(g): s for g, s in head["slowdowns"].items()})
    kinds, widths, seconds = layers(net), samples.widths, samples.seconds
    chosen = np.arange(len(seconds)) % 4 == 3  # samples are independent, so any quarter will do

    def part(which: np.ndarray) -> Tuple[List[Widths], np.ndarray]:
        return [w for w, use in zip(widths, which) if use], seconds[which]

    trained, held = part(~chosen), part(chosen)

    def error(weights: Tuple[float, float]) -> float:
        table = _fitted(kinds, net.widths, *trained, steps, *weights)
        cost = table._cost(kinds)
        return nrmse(np.array([cost(w) for w in held[0]]), held[1])

    smooth, monotone = min(((s, 1.0) for s in SMOOTHNESS), key=error)
    smooth, monotone = min(((smooth, m) for m in MONOTONICITY), key=error)
    held_out = error((smooth, monotone))
    table = _fitted(kinds, net.widths, widths, seconds, steps, smooth, monotone)
    keys = ("network", "input", "classes", "sizes", "setup", "hardware", "granularity", "step", "slowdowns")
    took = [line.get("took_s") for line in samples.lines]
    header = {
        **{key: head[key] for key in keys},
        "n_samples": len(seconds),
        "sampling_s": None if None in took else sum(took),
        "smoothness": smooth,
        "monotonicity": monotone,
        "held_out_nrmse": held_out,
        "seconds_per_mac": _proportional(net, widths, seconds),
        "reference_s": float(np.median([line["reference_s"] for line in samples.lines])),
    }
    return Table(header, table.steps, table.axes, table.seconds, table.extras, table.regression)


def _fitted(
    kinds: Sequence[Layer],
    sizes: Widths,
    widths: Sequence[Widths],
    seconds: np.ndarray,
    steps: Steps,
    smooth: float,
    monotone: float,
) -> Table:
    """Entries and extras, all >= 0, that minimise Huber's loss of the errors plus the penalties.

    Errors are in units of the root of seconds times mean seconds; those above `OUTLIER` count linearly, since now and
    then something else has the processor. Extras are drawn towards what the granularity's probes said.
    """
    regression = fit_regression(kinds, widths, seconds)
    system = _system(kinds, sizes, seconds, steps, regression)
    terms = _terms(kinds, widths, steps, system)
    n, n_kinds, n_entries = len(widths), len(system.axes), len(system.prior)
    weight = 1 / np.sqrt(seconds * seconds.mean())

    # A network of odd multiples of the step is slowed by both widths of each layer.
    slow = max(0.0, np.sqrt(steps.slowdowns[steps.step] / steps.slowdowns[steps.granularity]) - 1)
    usual = np.tile([slow] + [0.0] * (FLAGS - 1), n_kinds)

    def objective(x: np.ndarray) -> Tuple[float, np.ndarray]:
        z, extras = x[:n_entries], x[n_entries:].reshape(2, -1)
        part = terms.entries @ z
        by_read, by_made = 1 + terms.flags[0] @ extras[0], 1 + terms.flags[1] @ extras[1]
        predicted = (part * by_read * by_made * terms.factor).reshape(n, -1).sum(1)
        miss, step = weight * (predicted - seconds), system.neighbours @ z
        fall, clipped = np.maximum(system.falls @ z, 0.0), np.clip(miss, -OUTLIER, OUTLIER)
        value = (
            clipped @ (2 * miss - clipped)
            + smooth * step @ step / len(kinds)
            + monotone * fall @ fall
            + RIDGE * ((z - 1) ** 2).sum()
            + DAMPING * ((extras - usual) ** 2).sum()
        )
        slope = np.repeat(weight * clipped, len(kinds)) * terms.factor
        of_z = (
            terms.entries.T @ (slope * by_read * by_made)
            + smooth / len(kinds) * (system.neighbours.T @ step)
            + monotone * (system.falls.T @ fall)
            + RIDGE * (z - 1)
        )
        of_extras = [terms.flags[0].T @ (slope * part * by_made), terms.flags[1].T @ (slope * part * by_read)]
        return value, 2 * np.concatenate([of_z, *(of_extras + DAMPING * (extras - usual))])

    begin = np.concatenate([np.ones(n_entries), usual, usual])
    found = optimize.minimize(
        objective,
        begin,
        jac=True,
        method="L-BFGS-B",
        bounds=[(0, None)] * len(begin),
        options={"maxiter": 1500, "maxfun": 2000, "maxcor": 30, "ftol": 1e-10},
    )
    values = found.x[:n_entries] * system.prior
    extras = found.x[n_entries:].reshape(2, n_kinds, FLAGS)
    return Table(
        {},
        steps,
        system.axes,
        {
            kind: values[at : at + _size(system.axes[kind])].reshape([len(a) for a in system.axes[kind]])
            for kind, at in system.start.items()
        },
        {kind: extras[:, k] for k, kind in enumerate(system.axes)},
        regression,
    )


def _size(axes: Tuple[np.ndarray, np.ndarray]) -> int:
    return len(axes[0]) * len(axes[1])


def _system(
    kinds: Sequence[Layer], sizes: Widths, seconds: np.ndarray, steps: Steps, regression: Regression
) -> _System:
    nodes = {group: grid(size, steps.granularity, steps.step) for group, size in sizes.items()}
    points: Dict[str, Tuple[set, set]] = {}
    for layer in kinds:
        reads, makes = points.setdefault(layer.kind, (set(), set()))
        makes.update(nodes[layer.makes] if layer.makes else [layer.n_made])
        reads.update(nodes[layer.reads] if layer.reads else [layer.n_read])
    for layer in kinds:
        if layer.depthwise:  # one width, which is both
            points[layer.kind] = (points[layer.kind][1], {0})
    axes = {kind: (np.array(sorted(r)), np.array(sorted(m))) for kind, (r, m) in points.items()}
    start, prior, apart, at = {}, [], [], 0
    by_kind = {layer.kind: layer for layer in kinds}
    for kind, (reads, makes) in axes.items():
        layer, start[kind] = by_kind[kind], at
        number = at + np.arange(_size((reads, makes))).reshape(len(reads), len(makes))
        prior += [regression.layer(layer, r, r if layer.depthwise else m) for r in reads for m in makes]
        for axis, a, b in ((reads, number[:-1], number[1:]), (makes, number[:, :-1], number[:, 1:])):
            # Neighbours far apart on the grid (relative to their widths) may differ more.
            gaps = np.log(axis[1:] / np.maximum(axis[:-1], 1))
            gaps = gaps[:, None] if a.shape[0] == len(axis) - 1 and axis is reads else gaps[None, :]
            gaps = np.broadcast_to(gaps, a.shape) if a.size else a
            apart += list(zip(a.ravel(), b.ravel(), 1 / np.sqrt(np.maximum(gaps.ravel(), 0.05))))
        at += number.size
    scale = float(seconds.mean())
    # No entry is free in the prior: a ratio to it must be able to say anything.
    prior = np.maximum(np.array(prior), 1e-4 * scale / len(kinds))
    a, b, weight = (np.array(v) for v in zip(*apart)) if apart else (np.zeros(0, int),) * 2 + (np.zeros(0),)
    rows, shape = np.arange(len(a)), (len(a), len(prior))
    both = np.tile(rows, 2), np.concatenate([a, b])
    neighbours = sparse.csr_matrix((np.concatenate([-weight, weight]), both), shape)
    falls = sparse.csr_matrix((np.concatenate([prior[a], -prior[b]]) / scale * len(kinds), both), shape)
    return _System(axes, start, prior, neighbours, falls)


class _Terms(NamedTuple):
    """One row per layer of each sampled network: what its time is made of."""

    entries: sparse.csr_matrix  # over all entries, in units of their prior
    flags: Tuple[sparse.csr_matrix, sparse.csr_matrix]  # of the widths read and made, over all extras
    factor: np.ndarray  # slowdown of widths that are no multiples of the step


def _terms(kinds: Sequence[Layer], widths: Sequence[Widths], steps: Steps, system: _System) -> _Terms:
    at, column, value, factor = [], [], [], []
    flagged: Tuple[List[Tuple[int, int, float]], List[Tuple[int, int, float]]] = ([], [])
    number = {kind: k for k, kind in enumerate(system.axes)}
    for w in widths:
        for layer in kinds:
            row = len(factor)
            read, made = layer.widths(w)
            factor.append(_factor(layer, steps, {}, read, made))
            for k, share in _corners(system.axes[layer.kind], steps.rounded(read), steps.rounded(made)):
                k += system.start[layer.kind]
                at.append(row)
                column.append(k)
                value.append(share * system.prior[k])
            for found, flags in zip(flagged, _flagged(layer, steps, read, made)):
                found += [(row, FLAGS * number[layer.kind] + f, flags[f]) for f in np.flatnonzero(flags)]

    def matrix(found: List[Tuple[int, int, float]]) -> sparse.csr_matrix:
        rows, columns, values = np.array(found, np.float64).reshape(-1, 3).T
        return sparse.csr_matrix((values, (rows.astype(int), columns.astype(int))), (len(factor), FLAGS * len(number)))

    return _Terms(
        sparse.csr_matrix((value, (at, column)), (len(factor), len(system.prior))),
        (matrix(flagged[0]), matrix(flagged[1])),
        np.array(factor),
    )


def _proportional(net: Network, widths: Sequence[Widths], seconds: np.ndarray) -> float:
    """Seconds per multiply-accumulate of a network's time, by the same weighted least squares: the simplest model."""
    cost = macs(net)
    counts = np.array([cost(w) for w in widths])
    return float(counts.sum() / (counts**2 / seconds).sum())


# ---- how good a model is ---------------------------------------------------------------------------------------------


def nrmse(predicted: np.ndarray, measured: np.ndarray) -> float:
    """Root mean squared error over the mean of what was measured."""
    return float(np.sqrt(np.mean((predicted - measured) ** 2)) / np.mean(measured))


def validate(
    table: Table,
    net: Network,
    held_out: Samples,
    alone: Optional[Sequence[float]] = None,
    again: Optional[Samples] = None,
) -> dict:
    """How the models do on networks that none of them was fitted to: `quality` by name, and what they predict.

    `alone`: per network, the sum of its layers timed by themselves over the reference's latency
    (`sampling.layers_alone`). `again`: the same networks timed once more, which is as good as a prediction can be.
    Drift is taken out: everything is at the speed that the table's reference had.
    UserError: `again` holds other networks.
    """
    reference = table.header["reference_s"]

    def at_that_speed(samples: Samples) -> np.ndarray:
        return samples.seconds * reference / np.median([line["reference_s"] for line in samples.lines])

    measured = at_that_speed(held_out)
    kinds, cost, count = layers(net), table.cost(net), macs(net)
    predicted = {
        "table": [cost(w) for w in held_out.widths],
        "regression": [table.regression(kinds, w) for w in held_out.widths],
        "MACs": [table.header["seconds_per_mac"] * count(w) for w in held_out.widths],
    }
    if alone is not None:
        predicted["layers alone"] = [reference * share for share in alone]
    if again is not None:
        if again.widths != held_out.widths:
            raise UserError(
                f"{again.path}: holds other networks than {held_out.path}; give a file that is not there yet"
            )
        predicted["clock again"] = at_that_speed(again).tolist()
    return {
        "network": table.header["network"],
        "input": table.header["input"],
        "setup": table.header["setup"],
        "hardware": held_out.header["hardware"],
        "n_samples": table.header["n_samples"],
        "sampling_s": table.header["sampling_s"],
        "granularity": table.steps.granularity,
        "reference_s": reference,
        "span": [float(measured.min() / reference), float(measured.max() / reference)],
        "quality": {name: quality(np.array(values), measured) for name, values in predicted.items()},
        "measured_s": measured.tolist(),
        "predicted_s": predicted,
    }


def quality(predicted: np.ndarray, measured: np.ndarray) -> dict:
    """RMSE in seconds, NRMSE, Kendall's tau, and the mean relative error, of predictions for networks not fitted."""
    return {
        "rmse_s": float(np.sqrt(np.mean((predicted - measured) ** 2))),
        "nrmse": nrmse(predicted, measured),
        "tau": float(stats.kendalltau(predicted, measured).statistic),
        "mean_relative_error": float(np.mean(np.abs(predicted / measured - 1))),
        "n": len(measured),
    }


# ---- files -----------------------------------------------------------------------------------------------------------


def save(table: Table, path: Path) -> None:
    """Write a model as JSON, whole or not at all. UserError where it cannot be written."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); give another file with --out") from error
    write_json(
        path,
        {
            "format": TABLE,
            **table.header,
            "table": {
                kind: {"read": r, "made": m, "seconds": table.seconds[kind]} for kind, (r, m) in table.axes.items()
            },
            "extras": table.extras,
            "regression": {"features": FEATURES, "seconds": table.regression.coefficients},
        },
    )


def load(path: Path) -> Table:
    """A model that `save` wrote. UserError: no such file, or not one of these."""
    try:
        raw = json.loads(Path(path).read_text(encoding="utf-8"))
        if raw["format"] != TABLE:
            raise ValueError("another format")
        axes = {
            kind: (np.array(t["read"], np.int64), np.array(t["made"], np.int64)) for kind, t in raw["table"].items()
        }
        seconds = {kind: np.array(t["seconds"], np.float64) for kind, t in raw["table"].items()}
        if any(seconds[k].shape != (len(r), len(m)) for k, (r, m) in axes.items()):
            raise ValueError("a table of another size than its axes")
        steps = Steps(
            int(raw["granularity"]), int(raw["step"]), {int(g): float(s) for g, s in raw["slowdowns"].items()}
        )
        extras = {kind: np.array(e, np.float64).reshape(2, FLAGS) for kind, e in raw["extras"].items()}
        regression = Regression({op: np.array(c, np.float64) for op, c in raw["regression"]["seconds"].items()})
        header = {k: v for k, v in raw.items() if k not in ("format", "table", "extras", "regression")}
        problem = header_problem(header)
        if problem or not isinstance(header.get("reference_s"), float):
            raise ValueError(problem or "'reference_s' is missing")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give one that `latency.py fit` wrote") from error
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise UserError(
            f"{path}: is no latency model ({type(error).__name__}: {error}); give one that `latency.py fit` wrote"
        ) from error
    return Table(header, steps, axes, seconds, extras, regression)


class LatencyOptions(Options):
    """Where the model is."""

    latency_model: str


@COSTS.register(
    "latency", LatencyOptions, label="Latency", method="GCP-latency", paper_label="latency", unit="s", is_timed=True
)
def predicted(net: Network, options: LatencyOptions) -> Cost:
    """Seconds of a forward pass, by a model that was fitted to timed networks."""
    return load(Path(options.latency_model)).cost(net)

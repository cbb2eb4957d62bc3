"""Methods compared at several targets and seeds: mean ranks, paired differences, and what pruning took.

The statistics are those of Demsar, "Statistical Comparisons of Classifiers over Multiple Data Sets", JMLR 2006: a block
is one network at one target, ranked by the means over seeds; Friedman's test, and Nemenyi's critical difference.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from gcp.cost.layers import Share
from gcp.errors import UserError
from gcp.experiment.record import Finished
from gcp.report import figures, tables
from gcp.report.frame import counted, options_of, unique

LEVEL = 0.05  # significance level of all tests and intervals
POINT = ["network", "objective", "target"]
LATENCY = "latency_kept"
NEAR = (0.02, 0.05)  # relative deviations from a latency target within which networks are counted
BUDGETS = {"params_kept": "parameters", LATENCY: "latency"}


class Ranking(NamedTuple):
    """Mean ranks of methods over blocks that contain all of them.

    `difference`: mean ranks closer than this cannot be told apart (Nemenyi); `p`: Friedman's p-value for the hypothesis
    that all methods are alike.
    """

    ranks: pd.Series
    n_blocks: int
    difference: float
    p: float


def entries(runs: Iterable[Finished]) -> pd.DataFrame:
    """A row per run; accuracies, costs and images as in the record.

    A run's method is its configuration's name without the objective and target at its end; `criterion` and `allocation`
    are those of `MethodOptions.factors`. UserError: two different runs have the same method, target and seed.
    """
    rows = []
    for run in unique(runs):
        record, stages = run.record, run.record.stages
        criterion, allocation = options_of(run).factors() or (None, None)
        rows.append(
            {
                "method": record.name.removesuffix(f"-{counted(run)}-{record.target:g}"),
                "recipe": json.dumps(record.config["finetune"], sort_keys=True),
                "criterion": criterion,
                "allocation": allocation,
                "network": record.model,
                "data": record.data,
                "scale": record.scale,
                "objective": counted(run),
                "target": record.target,
                "seed": record.seed,
                "top1": stages.final.top1,
                "pruned_top1": stages.pruned.top1,
                "dense_top1": stages.dense.top1,
                "n_eval": stages.final.n_eval,
                "macs_kept": record.macs_kept,
                "params_kept": record.params_kept,
                LATENCY: run.speeds.latency_kept if run.speeds else np.nan,
                "latency_error": run.speeds.budget.error if run.speeds and run.speeds.budget else np.nan,
                "images": record.images,
                "images_total": record.images_total,
                "seconds": stages.pruned.seconds,
                "fingerprint": record.fingerprint,
            }
        )
    table = pd.DataFrame(rows)
    twice = table[table.duplicated(["method", *POINT, "seed"], keep=False)]
    if len(twice):
        row = twice.iloc[0]
        wrong = f"two runs use {row.method} on {row.network} at {row.target:g} of the {row.objective}, seed {row.seed}"
        raise UserError(
            f"{wrong}; give the folder of a single comparison, or give the two configurations different names"
        )
    return table


def ranking(table: pd.DataFrame) -> Ranking | None:
    """Methods ranked by accuracy, 1 the best, in blocks that contain all of them; None with fewer than two of either.

    Blocks and methods are chosen so that as many cells as possible take part, each counted as often as there are
    blocks: more blocks make mean ranks more certain, whereas more methods only add to what has to be told apart.
    """
    means = table.pivot_table(index=POINT, columns="method", values="top1")
    cells = means.notna().to_numpy()
    shared: set[tuple[bool, ...]] = set()  # the methods that a set of blocks shares, for every set of blocks
    for own in cells:
        shared |= {tuple(own)} | {tuple(own & np.array(other)) for other in shared}
    sizes = {}
    for some in sorted(shared):
        of = cells[:, np.array(some)].all(axis=1)
        if sum(some) > 1 and of.sum() > 1:
            sizes[some] = int(of.sum()) ** 2 * sum(some)
    if not sizes:
        return None
    methods = np.array(max(sizes, key=sizes.__getitem__))
    block = means.loc[cells[:, methods].all(axis=1), methods]
    n, k = block.shape
    ranks = block.rank(axis=1, ascending=False).mean().sort_values(kind="stable")
    p = stats.friedmanchisquare(*block.to_numpy().T).pvalue if k > 2 else np.nan
    return Ranking(ranks, n, critical_difference(k, n), float(p))


def critical_difference(k: int, n: int) -> float:
    """Nemenyi's difference between mean ranks of k methods over n blocks, at `LEVEL` (Demsar 2006, section 3.2.2)."""
    q = stats.studentized_range.ppf(1 - LEVEL, k, 10**6) / np.sqrt(2)
    return float(q * np.sqrt(k * (k + 1) / (6 * n)))


def differences(table: pd.DataFrame, baseline: str) -> pd.DataFrame:
    """For each method and point, the mean difference in top-1 from the baseline over the seeds that both have.

    `half` is half the width of its confidence interval (Student's t over seeds), NaN for a single seed.
    """
    rows = _paired(table, baseline).groupby(["method", *POINT], sort=False).agg(["mean", _half, "size"])
    return rows.set_axis(["mean", "half", "n"], axis=1).reset_index()


def overall(table: pd.DataFrame, baseline: str) -> pd.DataFrame:
    """For each method, the mean difference in top-1 from the baseline over all seeds of all points that both have.

    `half` is as in `differences`, as if pairs were independent; `ahead` is the number of pairs that the method wins.
    """
    pairs = _paired(table, baseline)
    rows = pairs.groupby("method", sort=False).agg(["mean", _half, lambda found: int((found > 0).sum()), "size"])
    rows = rows.set_axis(["mean", "half", "ahead", "n"], axis=1).reset_index()
    return rows.sort_values("mean", ascending=False, kind="stable")


def _paired(table: pd.DataFrame, baseline: str) -> pd.Series:
    """Top-1 minus the baseline's at the same point and seed, by method, point and seed, where both exist.

    UserError: no run is the baseline.
    """
    _check(table, baseline)
    runs = table.set_index(["method", *POINT, "seed"]).top1
    others = runs.drop(baseline, level="method")
    return (others - runs.loc[baseline].reindex(others.index.droplevel("method")).to_numpy()).dropna()


def _check(table: pd.DataFrame, baseline: str) -> None:
    """UserError: no run is the baseline."""
    if not table.method.eq(baseline).any():
        raise UserError(f"no run is called {baseline}; choose one of {', '.join(sorted(table.method.unique()))}")


def _half(found: pd.Series) -> float:
    """Half the width of a mean's confidence interval (Student's t), NaN for a single value."""
    n = len(found)
    return float(stats.t.ppf(1 - LEVEL / 2, n - 1) * found.std() / np.sqrt(n)) if n > 1 else np.nan


def at_equal(table: pd.DataFrame, key: str, baseline: str) -> pd.DataFrame:
    """Top-1 of every method where its cost `key` equals the baseline's: a row per method, a column per target.

    Interpolated linearly between the method's own points, over the logarithm of the cost; NaN beyond its ends.
    """
    means = table.dropna(subset=[key]).groupby(["method", "target"])[[key, "top1"]].mean().reset_index()
    wanted = means[means.method == baseline].set_index("target")[key]
    rows = {}
    for method, own in means.groupby("method"):
        own = own.sort_values(key)
        x = np.log(own[key].to_numpy())
        rows[method] = np.interp(np.log(wanted), x, own.top1, left=np.nan, right=np.nan)
    return pd.DataFrame.from_dict(rows, orient="index", columns=wanted.index)


def crossed(table: pd.DataFrame) -> pd.DataFrame | None:
    """Top-1 at one point by (criterion, seed), a column per allocation, where everything has been combined.

    Allocations are chosen so that as many cells as possible take part; seeds are those that all cells have. None with
    fewer than two of either factor.
    """
    cells = table.pivot_table(index="criterion", columns=["allocation", "seed"], values="top1")
    ran = cells.notna().T.groupby(level="allocation").any().T
    choices = [
        (ran.index[ran[list(some)].all(axis=1)], list(some))
        for n in range(2, ran.shape[1] + 1)
        for some in itertools.combinations(ran, n)
    ]
    choices = [choice for choice in choices if len(choice[0]) > 1]
    if not choices:
        return None
    criteria, allocations = max(choices, key=lambda choice: len(choice[0]) * len(choice[1]))
    found = cells.loc[criteria, allocations].stack("seed", future_stack=True)
    seeds = found.notna().all(axis=1).groupby(level="seed").all()
    found = found[found.index.get_level_values("seed").isin(seeds.index[seeds])]
    return None if found.empty else found


def shares(cells: pd.DataFrame) -> dict[str, tuple[float, float]]:
    """What criterion, allocation, their combination and the seed explain of the result of `crossed`.

    For each, its part of the sum of squares and the p-value of the F-test (analysis of variance, seeds as blocks; NaN
    with a single seed).
    """
    values = cells.stack()
    total, n = values - values.mean(), len(values)
    keys = {"criterion": ["criterion"], "allocation": ["allocation"], "seed": ["seed"]}
    keys["combination"] = ["criterion", "allocation"]
    explained = {name: float((total.groupby(level=key).transform("mean") ** 2).sum()) for name, key in keys.items()}
    levels = {name: total.groupby(level=key).ngroups - 1 for name, key in keys.items()}
    for name in ("criterion", "allocation"):
        explained["combination"] -= explained[name]
        levels["combination"] -= levels[name]
    all_of_it = float((total**2).sum())
    rest, free = all_of_it - sum(explained.values()), n - 1 - sum(levels.values())
    with np.errstate(divide="ignore", invalid="ignore"):  # seeds may not differ, or nothing at all may
        noise = np.float64(rest) / free
        return {
            name: (
                float(np.float64(explained[name]) / all_of_it),
                float(stats.f.sf(explained[name] / levels[name] / noise, levels[name], free))
                if free and levels[name]
                else np.nan,
            )
            for name in ("criterion", "allocation", "combination", "seed")
        }


def correlations(table: pd.DataFrame) -> pd.DataFrame:
    """For each point, Spearman's rank correlation over methods between accuracy before and after fine-tuning.

    Points at which either is the same for all methods are left out: there is nothing to correlate.
    """
    means = table.groupby([*POINT, "method"])[["pruned_top1", "top1"]].mean()
    rows = []
    for point, own in means.groupby(POINT):
        if len(own) > 2 and own.nunique().min() > 1:
            found = stats.spearmanr(own.pruned_top1, own.top1)
            rows.append({**dict(zip(POINT, point)), "rho": found[0], "p": found[1], "n": len(own)})
    return pd.DataFrame(rows, columns=[*POINT, "rho", "p", "n"])


# ---- tables --------------------------------------------------------------------------------------------------------


def write(
    runs: Iterable[Finished],
    output: Path,
    baseline: str,
    predicted: Mapping[str, Mapping[str, Share]] = MappingProxyType({}),
) -> list[Path]:
    """Write all tables and figures of a comparison, and return the paths.

    `predicted`: by fingerprint, what the layers of a run's network cost by a latency model. UserError: two different
    runs have the same method, target and seed, or no run is the baseline.
    """
    table = entries(runs)
    _check(table, baseline)
    ranked = ranking(table)
    order = list(ranked.ranks.index) if ranked else []
    by_mean = table.groupby("method").top1.mean().sort_values(ascending=False, kind="stable")
    order += [method for method in by_mean.index if method not in order]
    paths = []
    grids, is_crossed = {}, pd.Series(False, table.index)
    for point, own in table.groupby(POINT, sort=False):
        own = own[own.recipe == own.recipe.mode()[0]]  # a grid is about what is pruned, not about how it is trained
        cells = crossed(own)
        if cells is not None:
            grids[point] = (own, cells)
            is_crossed[own.index[own.criterion.notna()]] = True
    if ranked:  # the others of a grid are shown in its own table
        table = table[~(is_crossed & ~table.method.isin({*ranked.ranks.index, baseline}))]
    several = table.groupby("network").objective.transform("nunique").max() > 1
    for (network, objective), own in table.groupby(["network", "objective"], sort=False):
        said, base = _said(own), own[own.method == baseline]
        of = f"{network}_{objective}" if several else network
        for name, columns, digits, caption in (
            _accuracies(own, order, ranked),
            *([_differences(own, order, baseline)] if len(base) else []),
            *(_at_equal(own, order, key, baseline) for key in BUDGETS if base[key].notna().any()),
            _costs(own, order),
            *([_places(own, order, predicted)] if own.fingerprint.isin(predicted).any() else []),
        ):
            frame = pd.DataFrame(columns)
            path = output / f"{of}_{name}"
            blocks = "Target %" if "Target %" in frame else None
            paths += tables.save(frame, digits, f"{caption} {said}", path, f"tab:{of}-{name}", blocks)
        paths += figures.save(figures.accuracy_bars(own, order, baseline), output / f"{of}_accuracy")
        points = {target: grid for (*place, target), grid in grids.items() if place == [network, objective]}
        if points:
            columns, digits, caption = _grid(points)
            path = output / f"{of}_grid"
            paths += tables.save(columns, digits, f"{caption} {said}", path, f"tab:{of}-grid", "Target %")
    found = correlations(table)
    if len(found):
        columns = {"Network": found.network, "Target %": 100 * found.target, "Rank correlation": found.rho}
        columns |= {"p": found.p, "Methods": found.n}
        digits = {"Target %": None, "Rank correlation": 2, "p": 3, "Methods": 0}
        caption = "Spearman's rank correlation over methods: top-1 before fine-tuning against top-1 after it."
        paths += tables.save(pd.DataFrame(columns), digits, caption, output / "correlation", "tab:correlation")
    if ranked:
        paths += figures.save(figures.rank_diagram(ranked), output / "ranks")
    if len(table[POINT].drop_duplicates()) > 1:
        paths += _overall(table, baseline, output / "overall")
    return paths


def _overall(table: pd.DataFrame, baseline: str, path: Path) -> list[Path]:
    found = overall(table, baseline)
    columns = {"Method": found.method, "Difference": 100 * found["mean"], "Difference sd": 100 * found.half}
    columns |= {"Ahead in": found.ahead, "Pairs": found.n}
    caption = (
        f"Top-1 minus that of {baseline}, in points, over all seeds of all networks and targets that both have: mean ± "
        "half of the 95 % confidence interval, as if pairs were independent; and in how many the method is ahead. "
        f"{' '.join(tables.scale_sentences(table.scale))}"
    )
    return tables.save(
        pd.DataFrame(columns), {"Difference": 2, "Ahead in": 0, "Pairs": 0}, caption, path, "tab:overall"
    )


def _said(own: pd.DataFrame) -> str:
    """What every caption states about the runs of a network."""
    n_seeds, n_eval = own.groupby(["method", "target"]).seed.nunique(), int(own.n_eval.max())
    seeds = f"{n_seeds.max()}" if n_seeds.min() == n_seeds.max() else f"{n_seeds.min()} to {n_seeds.max()}"
    seeds += " seed" if seeds == "1" else " seeds"
    where = f"{own.network.iloc[0]} on {own['data'].iloc[0]}, {seeds}, {n_eval:,} test images."
    return f"{where} {' '.join(tables.scale_sentences(own.scale))}"


def _percent(target: float) -> str:
    return f"{100 * target:g} %"


def _accuracies(own: pd.DataFrame, order: Sequence[str], ranked: Ranking | None) -> tuple:
    """Mean and deviation at every target, in the order of mean rank, below the dense network."""
    cells = own.groupby(["method", "target"]).top1
    means, sds = (100 * cells.agg(how).unstack() for how in ("mean", "std"))
    methods = [method for method in order if method in means.index]
    # Targets can have been run from dense networks of their own: on another processor, rounding gives others.
    dense = 100 * own.groupby(["target", "seed"]).dense_top1.mean().unstack("target")
    columns: dict = {"Method": ["unpruned", *methods]}
    if ranked is not None:
        columns["Mean rank"] = [np.nan, *(ranked.ranks.get(method, np.nan) for method in methods)]
    for target in reversed(means.columns):
        columns[_percent(target)] = [dense[target].mean(), *means[target].reindex(methods)]
        columns[f"{_percent(target)} sd"] = [dense[target].std(), *sds[target].reindex(methods)]
    digits = {title: 2 for title in columns if title != "Method" and not title.endswith(" sd")}
    counts = cells.size().unstack().reindex(methods)[means.columns[::-1]]
    columns["Seeds"] = ["", *(", ".join(f"{n:.0f}" for n in row if n > 0) for row in counts.to_numpy())]
    objective = own.objective.iloc[0]
    cost = {"macs": "MACs", "params": "parameters"}.get(objective, objective)
    caption = (
        f"Top-1 % at fractions of the {cost}, mean ± sample standard deviation over seeds "
        f"(their number at each target is in the last column). {images_seen(own)}"
    )
    if ranked is not None:
        caption += (
            f" Mean rank over {ranked.n_blocks} blocks (a network at a target); ranks that differ by less than "
            f"{ranked.difference:.1f} cannot be told apart (Nemenyi, 5 %)."
        )
    return "accuracy", columns, digits, caption


def images_seen(own: pd.DataFrame) -> str:
    """How many training images most methods used in total, and which used a number that differs by over 1 %."""
    means = own.groupby(["target", "method"]).images_total.mean().unstack()
    usual = means.apply(lambda row: max(row.dropna(), key=lambda n: ((row - n).abs().le(0.01 * n).sum(), n)), axis=1)
    differs = means.sub(usual, axis=0).abs().gt(0.01 * usual, axis=0)
    others = differs.any()
    numbers = ", ".join(f"{usual[target]:,.0f} at {_percent(target)}" for target in reversed(usual.index))
    # A method can differ at some targets only: the number is that of the lowest of these.
    more = [f"{name} {means[name][differs[name]].iloc[0]:,.0f}" for name in others.index[others]]
    return f"Training images after the dense network: {numbers}" + (f"; except {', '.join(more)}." if more else ".")


def _differences(own: pd.DataFrame, order: Sequence[str], baseline: str) -> tuple:
    """The difference from the baseline at every target, with its confidence interval."""
    found = differences(own, baseline).set_index(["method", "target"])
    means, halves = (100 * found[key].unstack() for key in ("mean", "half"))
    methods = [method for method in order if method in means.index]
    columns: dict = {"Method": methods}
    for target in reversed(means.columns):
        columns[f"Difference at {_percent(target)}"] = means[target].reindex(methods)
        columns[f"Difference at {_percent(target)} sd"] = halves[target].reindex(methods)
    columns = {key: list(value) for key, value in columns.items()}
    digits = {title: 2 for title in columns if title != "Method" and not title.endswith(" sd")}
    caption = f"Top-1 minus that of {baseline}, in points, seed by seed: mean ± half of the 95 % confidence interval."
    return "difference", columns, digits, caption


def _at_equal(own: pd.DataFrame, order: Sequence[str], key: str, baseline: str) -> tuple:
    """Accuracy at the baseline's number of parameters or latency."""
    found, base = at_equal(own, key, baseline), own[own.method == baseline]
    kept = 100 * base.groupby("target")[key].mean()
    methods = [method for method in order if method in found.index]
    columns: dict = {"Method": methods}
    for target in reversed(found.columns):
        columns[f"{kept[target]:.3g} %"] = list(100 * found[target].reindex(methods))
    caption = (
        f"Top-1 % at the {BUDGETS[key]} that {baseline} keeps, interpolated linearly between each method's own points "
        "over the logarithm of the cost."
    )
    return key.replace("_kept", ""), columns, {title: 2 for title in columns if title != "Method"}, caption


def _costs(own: pd.DataFrame, order: Sequence[str]) -> tuple:
    """What was kept and what pruning took, by target and method."""
    rows = []
    ranks = {method: i for i, method in enumerate(order)}
    by_cell = own.assign(_rank=own.method.map(ranks)).sort_values(["target", "_rank"], ascending=[False, True])
    for (target, method), same in by_cell.groupby(["target", "method"], sort=False):
        rows.append(
            {
                "Target %": _percent(target).rstrip(" %"),
                "Method": method,
                "MACs %": 100 * same.macs_kept.mean(),
                "Params %": 100 * same.params_kept.mean(),
                "Latency %": 100 * same[LATENCY].mean(),
                "Before fine-tuning, top-1 %": 100 * same.pruned_top1.mean(),
                "Seconds of pruning": same.seconds.mean(),
                "Images of pruning": _purposes(same.images),
                "Images in total": same.images_total.mean(),
            }
        )
    digits = {"MACs %": 2, "Params %": 2, "Latency %": 1, "Before fine-tuning, top-1 %": 2, "Seconds of pruning": 0}
    caption = (
        "What the networks keep of the dense network, and what pruning took. Latency: of a batch, measured alternately "
        "with the dense network's. Seconds are wall-clock time, regardless of other load on the machine."
    ) + _reached(own)
    return "cost", pd.DataFrame(rows).to_dict("list"), {**digits, "Images in total": 0}, caption


def _reached(own: pd.DataFrame) -> str:
    """For latency targets, how many networks meet them when timed once more."""
    said = ""
    for target, same in own[own.objective.eq("latency") & own[LATENCY].notna()].groupby("target", sort=False):
        off = (same[LATENCY] / target - 1).abs()
        counts = ", ".join(f"{off.le(part).sum()} are within {100 * part:g} %" for part in NEAR)
        said += f" Of {len(off)} networks with a latency target of {_percent(target)}, {counts} of it"
        known = 100 * same.latency_error.dropna()
        if len(known):
            said += f" (standard errors, of {len(known)} timed in rounds: {known.min():.1f} to {known.max():.1f} %)"
        said += "."
    return said


def _grid(points: Mapping[float, tuple[pd.DataFrame, pd.DataFrame]]) -> tuple:
    """A row per criterion and a column per allocation, and what each explains, of runs and `crossed` by target."""
    frames, said = [], []
    for target in sorted(points, reverse=True):
        own, whole = points[target]
        cells = own.groupby(["criterion", "allocation"]).top1
        by_cell, sds = (100 * cells.agg(how).unstack() for how in ("mean", "std"))
        by_cell = by_cell.loc[by_cell.mean(axis=1).sort_values(ascending=False, kind="stable").index]
        names = list(whole.index.unique("criterion"))
        columns: dict = {"Target %": _percent(target).rstrip(" %")}
        columns["Criterion"] = [*by_cell.index, "mean of complete rows"]
        for allocation in by_cell:
            mean = by_cell.loc[names, allocation].mean() if allocation in whole else np.nan
            columns[allocation] = [*by_cell[allocation], mean]
            columns[f"{allocation} sd"] = [*sds[allocation].reindex(by_cell.index), np.nan]
        frames.append(pd.DataFrame(columns))
        parts = ", ".join(
            f"the {name} {100 * part:.0f} %" + (f" (p = {p:.2g})" if np.isfinite(p) else "")
            for name, (part, p) in shares(whole).items()
        )
        said.append(f"at {_percent(target)}, of rows with {' and '.join(whole)}, {parts}")
    table = pd.concat(frames, ignore_index=True)
    caption = (
        "Top-1 % of networks cut once, by criterion (rows) and allocation (columns), mean ± sample standard deviation "
        "over seeds. The sum of squares of complete rows is explained by (analysis of variance, seeds as blocks): "
        f"{'; '.join(said)}; the rest is noise."
    )
    digits = {title: 2 for title in table if title not in ("Target %", "Criterion") and not title.endswith(" sd")}
    return table, digits, caption


def _places(own: pd.DataFrame, order: Sequence[str], predicted: Mapping[str, Mapping[str, Share]]) -> tuple:
    """What layers cost, by the positions of their outputs: multiply-accumulates, and latency by a latency model."""
    ranks, rows = {method: i for i, method in enumerate(order)}, []
    by_cell = own[own.fingerprint.isin(predicted)].assign(_rank=lambda some: some.method.map(ranks))
    by_cell = by_cell.sort_values(["target", "_rank"], ascending=[False, True])
    for (target, method), same in by_cell.groupby(["target", "method"], sort=False):
        shares = [predicted[each] for each in same.fingerprint]
        of = {place: 100 * np.mean([share[place] for share in shares], axis=0) for place in shares[0]}
        row = {"Target %": _percent(target).rstrip(" %"), "Method": method, "Latency %": 100 * same[LATENCY].mean()}
        row["Predicted %"] = sum(latency for _, latency in of.values())
        row.update({f"{place}: MACs %": work for place, (work, _) in of.items()})
        rows.append({**row, **{f"{place}: predicted %": latency for place, (_, latency) in of.items()}})
    columns = pd.DataFrame(rows).to_dict("list")
    caption = (
        "Latency, measured and predicted by the latency model, and the shares of it and of the multiply-accumulates "
        "that layers with outputs of each size take. All are fractions of the dense network's."
    )
    return "places", columns, {title: 1 for title in columns if title not in ("Method", "Target %")}, caption


def _purposes(images: Iterable[Mapping[str, int]]) -> str:
    """Images by purpose, mean over seeds: "recover 15,360, scoring 12,224"."""
    mean = pd.DataFrame(list(images)).fillna(0).mean()
    return ", ".join(f"{purpose} {n:,.0f}" for purpose, n in mean.items() if n) or tables.MISSING

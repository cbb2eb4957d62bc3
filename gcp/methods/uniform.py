"""What GCP is compared with: each baseline is a short function with GCP's signature."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Callable, Dict, List, Tuple

import numpy as np

from gcp.cost.base import Budget, fit_to_measured_budget, round_width
from gcp.graph.network import Keep, Network, Widths, shrink


def none(net: Network, budget: Budget, data, cfg, folder: Path, log: Callable[..., None]) -> Tuple[Network, List[dict]]:
    """Prune nothing: the dense network with the same fine-tuning."""
    return net, []


def uniform(
    net: Network, budget: Budget, data, cfg, folder: Path, log: Callable[..., None]
) -> Tuple[Network, List[dict]]:
    """Keep the same fraction of every group, chosen by L1 norm or at random, at the budget's cost."""
    rank = {"l1": lambda: l1_norms(net), "random": lambda: random_scores(net, cfg.seed)}[cfg.prune.criterion]()

    def choose(aim: float) -> Network:
        widths = uniform_widths(net.widths, replace(budget, target=aim / budget.original))
        keep: Keep = {g: np.sort(np.argsort(-rank[g], kind="stable")[:n]) for g, n in widths.items()}
        return shrink(net, keep)

    small, timings = fit_to_measured_budget(budget, budget.target * budget.original, choose)
    if timings:
        log("timed", timings=timings)
    return small, []


def uniform_widths(sizes: Widths, budget: Budget) -> Widths:
    """The largest common fraction of every group whose cost is within the budget; every group keeps a channel.

    With rounding the common fraction is coarse (steps of 8 on a layer of 64), so what is left of the budget is
    spent on the groups that rounding has put furthest below the common fraction, one block each at most: the
    comparison is at equal achieved cost, not at equal request.
    """
    limit = budget.target * budget.original

    def at(fraction: float) -> Widths:
        return {g: round_width(max(1, int(fraction * n + 1e-9)), n, budget.round_to) for g, n in sizes.items()}

    # The widths change only where fraction * size is a whole number.
    steps = np.unique(np.concatenate([np.arange(n + 1) / n for n in set(sizes.values())]))
    low, high = 0, len(steps) - 1
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if budget.cost(at(steps[middle])) <= limit else (low, middle - 1)
    widths = at(steps[low])
    for group in sorted(sizes, key=lambda g: widths[g] / sizes[g]):
        size, width = sizes[group], widths[group]
        larger = {**widths, group: min(width + budget.round_to, size)}
        if larger[group] - width == 0 or budget.cost(larger) > limit:
            continue
        widths = larger
    return widths


def l1_norms(net: Network) -> Dict[str, np.ndarray]:
    """Per channel, the L1 norm of the weights that produce it, over all producers (Li et al. 2017)."""
    return {
        g.name: sum(
            np.abs(net.arrays[net.weight(p)].astype(np.float64)).reshape(g.size, -1).sum(1) for p in g.producers
        )
        for g in net.groups
    }


def random_scores(net: Network, seed: int) -> Dict[str, np.ndarray]:
    """A random rank for every channel, from the seed."""
    rng = np.random.default_rng(seed)
    return {g.name: rng.permutation(g.size).astype(np.float64) for g in net.groups}

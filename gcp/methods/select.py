"""From scores to the channels to keep: a given number in each group, or all groups ranked together under a budget."""

from __future__ import annotations

from typing import List, Mapping, Tuple

import numpy as np

from gcp.cost.base import Cost, round_width
from gcp.errors import UserError
from gcp.graph.network import Keep, Widths


def highest(scores: Mapping[str, np.ndarray], widths: Widths) -> Keep:
    """The indices of the best channels of every group, sorted, as many as its width."""
    return {name: np.sort(np.argsort(-scores[name], kind="stable")[:n]) for name, n in widths.items()}


def least_width(size: int, max_cut: float) -> float:
    """The least width of a group that loses at most the fraction `max_cut` of its channels, up to rounding errors."""
    return (1 - max_cut) * size - 1e-9  # (1 - 0.7) * 10 is more than 3 in floats


def select(scores: Mapping[str, np.ndarray], cost: Cost, limit: float, round_to: int = 1, max_cut: float = 1.0) -> Keep:
    """Rank the channels of all groups together and remove the lowest until `cost(widths) <= limit`.

    With `round_to` > 1, channels are removed in blocks, so that every width stays a multiple of it (or the whole group)
    and never falls below it; a block is ranked by its mean score. The last block may overshoot, so removed blocks that
    still fit come back, best first. No group is emptied. No group loses more than the fraction `max_cut` of its
    channels, unless all have lost that much and the limit is still not met. UserError: the limit cannot be met at all.
    """
    order = {name: np.argsort(-s, kind="stable") for name, s in scores.items()}
    sizes = {name: len(s) for name, s in scores.items()}
    blocks: List[Tuple[float, int, str, int]] = []  # mean score, tie-break, group, width without the block
    for number, (name, s) in enumerate(scores.items()):
        width = sizes[name]
        while width > min(round_to, sizes[name]):
            smaller = round_width(width - 1, sizes[name], round_to)
            value = float(s[order[name][smaller:width]].mean())
            blocks.append((value, number, name, smaller))
            width = smaller
    # A block can only be removed after the blocks below it in its own group; sorted scores ensure that, except in ties.
    # Blocks beyond `max_cut` are removed last.
    blocks.sort(key=lambda b: (b[3] < least_width(sizes[b[2]], max_cut), b[0], b[1], -b[3]))

    def widths_after(n: int) -> Widths:
        widths = dict(sizes)
        for _, _, name, smaller in blocks[:n]:
            widths[name] = smaller
        return widths

    low, high = 0, len(blocks)
    while low < high:  # the cost falls with every block, so bisect the number of blocks to remove
        middle = (low + high) // 2
        low, high = (low, middle) if cost(widths_after(middle)) <= limit else (middle + 1, high)
    widths = widths_after(low)
    if cost(widths) > limit * (1 + 1e-12):
        raise UserError(
            f"a cost of {limit:.6g} cannot be reached: {cost(widths):.6g} remains with every group at its "
            f"smallest width (round_to {round_to})"
        )

    def larger(name: str) -> Widths:
        width = widths[name] + round_to if widths[name] % round_to == 0 else sizes[name]
        return {**widths, name: min(width, sizes[name])}

    held = set()
    for _, _, name, smaller in reversed(blocks[:low]):
        if name in held:
            continue
        if smaller == widths[name] and cost(larger(name)) <= limit:
            widths = larger(name)
        else:
            held.add(name)
    grown = True
    while grown:  # more channels in no more time, as only latencies allow, where some numbers of blocks divide better
        grown = False
        for name in sizes:
            if widths[name] < sizes[name] and cost(larger(name)) <= cost(widths):
                widths, grown = larger(name), True
    return {name: np.sort(order[name][: widths[name]]) for name in sizes}

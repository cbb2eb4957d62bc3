"""ThiNet: greedily remove the channels that the next layer misses least, then refit the others by least squares.

Luo, Wu & Lin, "ThiNet: A Filter Level Pruning Method for Deep Neural Network Compression", ICCV 2017, algorithm 1 and
eqs. 6 and 7. Differences here: errors are computed exactly from a Gram matrix instead of by summing over the samples
again for every candidate; the mean of what is removed does not count as an error where a batch norm or a bias absorbs
it; least squares fits all weights of the next layer, not one factor per channel; the network is fine-tuned once at the
end, not after every layer.
"""

from __future__ import annotations

import numpy as np

from gcp.methods.base import METHODS, Outcome, Problem, Run
from gcp.methods.layerwise import Contributions, LayerwiseOptions, prune_layerwise


class ThinetOptions(LayerwiseOptions):
    """Which channels may be removed, and what they are judged by."""

    def label(self, cost: str) -> str:
        """The method's name in the literature."""
        return "ThiNet"


@METHODS.register("thinet", ThinetOptions)
def thinet(problem: Problem, options: ThinetOptions, run: Run) -> Outcome:
    """Prune layer by layer, with channels selected greedily by ThiNet."""
    return prune_layerwise(problem, options, least_missed, run)


def least_missed(contributions: Contributions, width: int) -> np.ndarray:
    """The indices of `width` channels, left by greedily removing all others one by one.

    Each step removes the channel that keeps the summed contribution of all removed channels smallest.
    """
    gram = contributions.gram
    stays, with_gone = np.ones(len(gram), bool), np.zeros(len(gram))
    for _ in range(len(gram) - width):
        grown = np.where(stays, np.diag(gram) + 2 * with_gone, np.inf)
        goes = int(np.argmin(grown))
        stays[goes] = False
        with_gone += gram[goes]
    return np.flatnonzero(stays)

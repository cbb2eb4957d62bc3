"""ThiNet: the channels whose absence the next layer notices least, greedily, and least squares for those that stay.

Luo, Wu & Lin, "ThiNet: A Filter Level Pruning Method for Deep Neural Network Compression", ICCV 2017, algorithm 1 and
eqs. 6 and 7. Different here: errors are summed exactly from a Gram matrix instead of over the samples anew for every
candidate; the mean of what goes is no error where a batch norm or a bias takes it up; least squares fit all weights of
the next layer, not one factor per channel; the network is fine-tuned once at the end, not after every layer.
"""

from __future__ import annotations

import numpy as np

from gcp.methods.base import METHODS, Outcome, Problem, Run
from gcp.methods.layerwise import Contributions, LayerwiseOptions, prune_layerwise


class ThinetOptions(LayerwiseOptions):
    """Which channels may go, and what they are judged by."""

    def label(self, cost: str) -> str:
        """Its name in the literature."""
        return "ThiNet"


@METHODS.register("thinet", ThinetOptions)
def thinet(problem: Problem, options: ThinetOptions, run: Run) -> Outcome:
    """Prune by ThiNet's greedy choice."""
    return prune_layerwise(problem, options, least_missed, run)


def least_missed(contributions: Contributions, width: int) -> np.ndarray:
    """The channels that stay when, one by one, that goes without which the sum of all that went is smallest."""
    gram = contributions.gram
    stays, with_gone = np.ones(len(gram), bool), np.zeros(len(gram))
    for _ in range(len(gram) - width):
        grown = np.where(stays, np.diag(gram) + 2 * with_gone, np.inf)
        goes = int(np.argmin(grown))
        stays[goes] = False
        with_gone += gram[goes]
    return np.flatnonzero(stays)
